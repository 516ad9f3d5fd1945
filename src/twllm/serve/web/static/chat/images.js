// Pictures for models that see: chosen, pasted or dropped, made smaller in the browser, sent as data URLs.

import { toast } from "../lib/dialogs.js";
import { button, find, h } from "../lib/dom.js";
import { t } from "../lib/words.js";

const MAX_SIDE = 1536; // pixels; vision encoders see less than this, and a request stays under a few hundred kB
const MAX_PICTURES = 4;
const QUALITY = 0.86;

let pictures = [];
let allowed = () => false, onChange = () => {};

async function smaller(file) {
  const picture = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE / Math.max(picture.width, picture.height));
  const canvas = h("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // what is transparent becomes white, JPEG would make it black
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return canvas.toDataURL("image/jpeg", QUALITY);
}

async function addPictures(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    if (pictures.length >= MAX_PICTURES) { toast(t("too_many_pictures", { number: MAX_PICTURES })); break; }
    try {
      pictures.push(await smaller(file));
    } catch {
      toast(t("bad_picture", { name: file.name }));
    }
  }
  draw();
}

export function setPictures(urls) {
  pictures = [...urls];
  draw();
}

export function takePictures() {
  const taken = pictures;
  setPictures([]);
  return taken;
}
export const hasPictures = () => pictures.length > 0;

function draw() {
  find("pictures").replaceChildren(...pictures.map((url, index) => h("div", { class: "picture" }, h("img", { src: url, alt: t("picture_number", { number: index + 1 }) }),
    button("close", t("remove_picture", { number: index + 1 }), () => setPictures(pictures.filter((_, other) => other !== index))))));
  find("pictures").hidden = !pictures.length;
  onChange();
}

export function setUpPictures(sees, changed) {
  allowed = sees;
  onChange = changed;
  const picker = find("picture-file");
  find("attach").addEventListener("click", () => picker.click());
  picker.addEventListener("change", () => { addPictures([...picker.files]); picker.value = ""; });
  find("question").addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!allowed() || !files.some((file) => file.type.startsWith("image/"))) return;
    event.preventDefault();
    addPictures(files);
  });
  const hasFiles = (event) => allowed() && [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => { if (hasFiles(event)) { event.preventDefault(); document.body.classList.add("dropping"); } });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!hasFiles(event)) return;
    event.preventDefault();
    addPictures([...event.dataTransfer.files]);
  });
}
