"""The Modelfile writes the trained prompts; the Go templates it is compared through are rendered as Go would."""

from pathlib import Path

import pytest

from twllm.errors import UserError
from twllm.release.go_template import render_go
from twllm.release.ollama import differences, modelfile, ollama_prompt, read_modelfile
from twllm.tokens.contract import default_system
from twllm.tokens.template import load_template
from twllm.tokens.tokenizer import ChatTokenizer

LLAMA3 = (
    "{{- bos_token }}{%- for message in messages -%}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] + '<|eot_id|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ '[INST] <<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ ('' if loop.index0 == 1 else '[INST] ') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# what Ollama ships as chatml and vicuna, as far as the parts of Go go (written here)
OLLAMA_CHATML = """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
<|im_start|>{{ .Role }}
{{ .Content }}{{ if or (ne .Role "assistant") (not $last) }}<|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}"""
OLLAMA_VICUNA = (
    "{{ if .System }}{{ .System }} {{ end }}{{ if .Prompt }}USER: {{ .Prompt }} {{ end }}ASSISTANT:{{ .Response }}</s>"
)


def with_source(tokenizer: ChatTokenizer, source: str) -> ChatTokenizer:
    return ChatTokenizer(tokenizer.backend, source, tokenizer.bos, tokenizer.eos)


@pytest.mark.parametrize("name", ["taiwan-llm-v1", "taiwan-llm-v2", "chatml", "llama3"])
def test_writes_the_trained_prompts(name: str, tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    tokenizer = with_source(tiny_tokenizer, LLAMA3) if name == "llama3" else tiny_tokenizer.with_template(name)
    generation = {"do_sample": True, "temperature": 0.7, "eos_token_id": [tokenizer.eos_id]}
    text = modelfile(tokenizer, "./a.gguf", generation=generation, context=2048, licence="apache-2.0")
    (tmp_path / "Modelfile").write_text(text, encoding="utf-8")
    read = read_modelfile(tmp_path / "Modelfile")
    assert read["FROM"] == "./a.gguf" and read.get("SYSTEM", "") == default_system(tokenizer)
    given = read["parameters"]
    assert given["num_ctx"] == ["2048"] and given["stop"] == [tokenizer.eos] and given["temperature"] == ["0.7"]
    chats = [
        [{"role": "user", "content": "請用「{{ 」寫\n\n兩行 </s> \"\\n\" "}],
        [{"role": "system", "content": "你是\n導遊"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    ]  # fmt: skip
    for chat in chats:
        right = tokenizer.render(chat, add_generation_prompt=True).text.removeprefix(tokenizer.bos)
        assert ollama_prompt(read["TEMPLATE"], read.get("SYSTEM", ""), chat) == right


def test_an_answer_that_is_begun_is_left_open(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(modelfile(tiny_tokenizer, "./a.gguf"), encoding="utf-8")
    template = read_modelfile(tmp_path / "Modelfile")["TEMPLATE"]
    chat = [{"role": "user", "content": "問"}, {"role": "assistant", "content": "我想"}]
    assert ollama_prompt(template, "", chat) == "USER: 問 ASSISTANT: 我想"


def test_another_template_is_seen(tiny_tokenizer: ChatTokenizer) -> None:
    system = default_system(tiny_tokenizer)
    assert differences(tiny_tokenizer, OLLAMA_CHATML, system)
    assert differences(tiny_tokenizer, OLLAMA_VICUNA, "You are a helpful assistant.")
    assert differences(tiny_tokenizer.with_template("chatml"), OLLAMA_CHATML, "") == []


def test_templates_without_messages_are_rendered_turn_by_turn(tiny_tokenizer: ChatTokenizer) -> None:
    """Ollama's older way; vicuna's own lacks the space before an answer of an earlier turn."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert ollama_prompt(OLLAMA_VICUNA, "S", chat) == "S USER: a ASSISTANT:b</s>USER: c ASSISTANT:"


def test_what_cannot_be_written_is_refused(tiny_tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UserError, match="no Go template"):
        modelfile(with_source(tiny_tokenizer, LLAMA2), "./a.gguf")
    changed = load_template("taiwan-llm-v2").replace("'USER: '", "('USER: ' if loop.first else 'U: ')")
    with pytest.raises(UserError, match="no Go template"):
        modelfile(with_source(tiny_tokenizer, changed), "./a.gguf")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a {{- 1 -}} b", "a1b"),
        ("{{ if .No }}x{{ else if eq .Name \"a\" \"臺\" }}y{{ else }}z{{ end }}", "y"),
        ("{{ range .List }}{{ . }},{{ else }}none{{ end }}{{ range .Empty }}x{{ else }}none{{ end }}", "1,2,3,none"),
        ("{{ range $i, $v := .List }}{{ $i }}{{ $v }}{{ end }}", "011223"),
        ("{{ with .Name }}{{ . }}{{ $.Name }}{{ end }}{{ with .No }}x{{ end }}", "臺臺"),
        ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ $x := 5 }}{{ end }}{{ $x }}{{ $y := .List | len }}{{ $y }}", "23"),
        ("{{ `raw \"{{` }}{{/* a comment */}}{{ \"\\n\\\"\" }}", "raw \"{{\n\""),
        ("{{ if and (gt (len .List) 2) (not .No) (or .No .Name) }}{{ index .List 1 }}{{ end }}", "2"),
        ("{{ json .List }}{{ .Missing }}{{ slice .Text 1 2 }}{{ le 1 2 }}", "[1,2,3]btrue"),
    ],
)  # fmt: skip
def test_go_templates(source: str, expected: str) -> None:
    values = {"List": [1, 2, 3], "Empty": [], "Name": "臺", "No": False, "Text": "abc"}
    assert render_go(source, values) == expected


@pytest.mark.parametrize("source", ["{{ if .A }}", "{{ end }}", "{{ else }}", "{{ foo 1 }}", "{{ template \"x\" }}", "{{ $y }}", "{{ ( }}", "{{ index .A 5 }}", "{{ ; }}"])  # fmt: skip
def test_broken_templates(source: str) -> None:
    with pytest.raises(UserError, match="Go template"):
        render_go(source, {"A": [1]})
