// The input box. Enter sends, Shift+Enter is a new line, and Enter that confirms a 注音 (or any IME) choice never sends.
//
// Browsers tell of that Enter in three ways: isComposing (Chrome, Firefox), keyCode 229 (Chrome, Safari), or only by a
// compositionend that comes just before the keydown of the same key press (Safari). All three are looked at.

const SAME_KEY_MS = 80; // compositionend and its keydown are under 10 ms apart, two presses of a fast typist over 100

export function setUpComposer(box, send) {
  let composing = false;
  let endedAt = -Infinity;
  box.addEventListener("compositionstart", () => { composing = true; });
  box.addEventListener("compositionend", (event) => { composing = false; endedAt = event.timeStamp; });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    if (composing || event.isComposing || event.keyCode === 229) return; // the input method's key, not ours
    event.preventDefault();
    if (event.timeStamp - endedAt < SAME_KEY_MS) return;
    send();
  });
  box.addEventListener("input", () => fit(box));
}

export function fit(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`; // 2: the borders
}
