// Light, dark, or as the system says. The colours themselves are in style/base.css.

import { icon } from "./dom.js";
import { read, write } from "./local.js";
import { onLanguage, t } from "./words.js";

const ORDER = ["auto", "light", "dark"];
const ICON = { auto: "auto", light: "sun", dark: "moon" };

export function setUpTheme(toggle) {
  let theme = ORDER.includes(read("theme")) ? read("theme") : "auto";
  const show = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const label = `${t("theme")}${t(`theme_${theme}`)}`;
    toggle.replaceChildren(icon(ICON[theme]));
    toggle.setAttribute("aria-label", label);
    toggle.title = label;
  };
  toggle.addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    write("theme", theme);
    show();
  });
  onLanguage(show);
  show();
}
