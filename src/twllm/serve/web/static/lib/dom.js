// Page elements without any parsing of HTML: text always goes in as text, so nothing a model or a person writes becomes markup.

const SVG = "http://www.w3.org/2000/svg";

// h("button", { class: "x", onclick: f, "aria-label": "…" }, "text", child, null)
export function h(name, props = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const find = (id) => document.getElementById(id);

const ICONS = { // 24 x 24, drawn as lines
  menu: "M4 6h16M4 12h16M4 18h16",
  edit: "M4 20h4L19 9l-4-4L4 16v4M13 7l4 4",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  redo: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  up: "M7 11v9H4v-9h3l4.5-8a2 2 0 0 1 2.3 2.6L13 10h5.6a2 2 0 0 1 2 2.4l-1.2 6a2 2 0 0 1-2 1.6H7",
  down: "M17 13V4h3v9h-3l-4.5 8a2 2 0 0 1-2.3-2.6L11 14H5.4a2 2 0 0 1-2-2.4l1.2-6a2 2 0 0 1 2-1.6H17",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  close: "M6 6l12 12M18 6L6 18",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  search: "M15.5 15.5L20 20M17 10.5a6.5 6.5 0 1 1-13 0 6.5 6.5 0 0 1 13 0",
  sun: "M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0M12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6L7 7M17 17l1.4 1.4M18.4 5.6L17 7M7 17l-1.4 1.4",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5",
  auto: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  swords: "M5 4l11 11M19 4L8 15M4 17l3 3M6.5 13.5l4 4M20 17l-3 3M17.5 13.5l-4 4",
  chart: "M5 20V10M12 20V4M19 20v-7",
  columns: "M4 5h16v14H4zM12 5v14",
  chat: "M4 5h16v11H9l-5 4z",
  key: "M14 10a4 4 0 1 1-8 0 4 4 0 0 1 8 0M13 12.5L20 19M17 16l-2 2",
};

export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" }, svg("path", { d: ICONS[name] }));
}

// A button with an icon; `label` is its accessible name and tooltip, `text` what is shown beside the icon.
export function button(name, label, onclick, props = {}, text = null) {
  return h("button", { type: "button", "aria-label": label, title: label, onclick, ...props }, name && icon(name), text && h("span", {}, text));
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // plain http on a LAN has no clipboard API
    const area = h("textarea", { value: text, class: "sr", "aria-hidden": "true" });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}

// A copy button that says for a moment whether it worked.
export function copyButton(label, done, getText, props = {}) {
  const made = button("copy", label, async () => {
    const copied = await copyText(getText());
    made.replaceChildren(icon(copied ? "check" : "close"));
    made.setAttribute("aria-label", copied ? done : label);
    setTimeout(() => { made.replaceChildren(icon("copy")); made.setAttribute("aria-label", label); }, 1500);
  }, props);
  return made;
}
