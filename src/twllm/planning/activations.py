"""What autograd keeps of a forward pass: counted from train/fused.py, train/buckets.py, transformers, peft and bitsandbytes, held by tests.

A token of a layer keeps, in D model width, F feed-forward width, κ = K / H, H heads, m bytes of a number in the products' precision
(4 in fp32, 2 under bf16 autocast, where the residual stream stays fp32):
  two norms      input 8 D, and normalised input 8 D where the norm learns
  products       their inputs: to q k v, to o, to gate and up        3 m D; transformers' own layers in bf16: a cast for each, 12 D
  feed-forward   gate, silu(gate), up, their product                 4 m F
  attention      GPU (varlen): q k v in order, the kernel's output   m D (2 + 2 κ) + 4 H
                 rows shared out by N (context.py): κ (N + 1 / 2) for κ
                 CPU, documents up to 512 tokens: q k v, one weight a pair of tokens    m D (1 + 2 κ) + m H document
                 CPU, longer ones: fp32 q k v and output             4 D (2 + 2 κ) + m D + 4 H
  LoRA           inputs of adapted matrices only, r m each, with dropout a mask
  experts        k chosen ones: k m (2 D + 4 F / granularity)
Selective checkpointing keeps the first norm, q k v and the attention; full checkpointing the layer's input. What is computed again is
whole for one layer at a time.
"""

from twllm.planning.job import Job

LONGEST = 512  # tokens of a document whose weights the CPU attention keeps: train/buckets.py


def attention_bytes(job: Job) -> float:
    """Of a token of one layer."""
    size, m = job.size, job.moving
    D, H, k = size.D / job.tensor, size.H / job.tensor, size.K / size.H
    if job.cut > 1:  # keys and values of a document that fills the row: as many in each process
        k *= job.cut + 0.5
    if job.accelerator or job.cut > 1:
        return m * D * (2 + 2 * k) + 4 * H
    document = min(job.document or job.context, job.context)
    if document <= LONGEST:
        return m * D * (1 + 2 * k) + m * H * document
    return 4 * D * (2 + 2 * k) + m * D + 4 * H + 8


def layer_bytes(job: Job) -> float:
    """Of a token of one layer that is kept whole."""
    m, D, F = job.moving, job.size.D, job.size.F / job.tensor
    learns = job.learns_language
    found = (16 if learns else 8) * D + 8 + attention_bytes(job)
    if job.adapter:
        found += _adapter_bytes(job)
    elif learns:
        casts = 3 if job.fused or m == 4 else 5 if job.experts else 6
        found += m * D * (casts - 1 + 1 / job.tensor)
    if job.experts:
        return found + m * job.experts.top_k * (2 * D + 4 * F / job.experts.granularity)
    product = m * F if learns or (job.adapter and "down_proj" in job.adapter.targets) else 0
    return found + 3 * m * F + product


def _adapter_bytes(job: Job) -> float:
    """Inputs of the adapted matrices (down_proj's is counted with the feed-forward) and what goes between their two halves."""
    assert job.adapter
    m, D, F, on = job.moving, job.size.D, job.size.F, set(job.adapter.targets)
    shares = [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}]
    inputs = sum(bool(on & part) for part in shares) if m == 4 else len(on - {"down_proj"})
    masks = len(on - {"down_proj"}) * D + F * ("down_proj" in on) if job.adapter.dropout else 0
    return m * D * inputs + m * job.adapter.rank * len(on) + masks


def kept_layer_bytes(job: Job) -> float:
    """Of a token of one layer, until its backward pass."""
    if job.checkpointing == "full":
        return 4 * job.size.D
    if job.checkpointing == "selective":
        return layer_bytes(job) - 4 * job.size.D - 4 - job.moving * (job.size.D + 4 * job.size.F)
    return layer_bytes(job)


def kept_bytes(job: Job) -> float:
    """Of a micro-batch: all layers, the last norm, ids and angles; the encoder where there are pictures."""
    size, t = job.size, job.micro_tokens
    if job.eyes and job.eyes.classifies:
        return eyes_bytes(job)
    return t * (kept_layer_bytes(job) * size.L + 8 * size.D + 8 * size.D / size.H + 24) + eyes_bytes(job)


def eyes_bytes(job: Job) -> float:
    """Of the pictures in a micro-batch, as many as could stand in it: an encoder's layers (transformers' CLIP) where it learns, the projector."""
    if not job.eyes:
        return 0.0
    e, m = job.eyes, job.moving
    patches = job.micro_tokens // (e.tokens + TEXT_OF_A_PICTURE) * e.tokens
    own = e.L * (16 * e.D + m * (9 * e.D + 2 * e.F)) if "encoder" in e.learns else 0
    return patches * (own + (m + 4) * (e.D + 2 * job.size.D) * (not e.classifies))


TEXT_OF_A_PICTURE = 32  # tokens beside a picture, at least; chosen
