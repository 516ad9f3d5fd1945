// What every page begins with: colours, language, the key, the links between pages, the server's configuration.

import { getJson, onKeyNeeded } from "./api.js";
import { askKey } from "./dialogs.js";
import { find, h, icon } from "./dom.js";
import { setUpTheme } from "./theme.js";
import { applyWords, onLanguage, setLanguage, language, t } from "./words.js";

const PAGES = [["", "chat", "chat", null], ["arena", "swords", "arena", "arena"], ["leaderboard", "chart", "leaderboard", "arena"], ["compare", "columns", "compare", "compare"]];

function showLinks(config, here) {
  const wanted = PAGES.filter(([, , , flag]) => !flag || config[flag]);
  const links = wanted.map(([address, picture, word]) => h("a", { href: address || "./", "aria-current": address === here ? "page" : null }, icon(picture), h("span", {}, t(word))));
  const place = find("pages");
  place.replaceChildren(...links);
  place.hidden = links.length < 2;
  place.scrollLeft = (place.querySelector("[aria-current]")?.offsetLeft ?? 0) - place.offsetLeft - 40; // on a phone not all fit
}

// The line beside the checkbox: the server's words are what is agreed to; in English they are explained.
function showConsent(config) {
  const place = find("consent-line");
  if (!place) return;
  const own = config.consent_text;
  place.textContent = !own ? t("consent") : language() === "en" ? `${t("consent")} (${own})` : own;
}

// Questions to begin with: the server's, filled up to four with our own; in English our own.
export function examples(config) {
  const own = [1, 2, 3, 4].map((number) => t(`example_${number}`));
  const given = language() === "en" ? [] : config.examples ?? [];
  return [...given, ...own].slice(0, Math.max(4, Math.min(6, given.length)));
}

// The configuration, with every field that the page relies on; `here`: this page's address.
export async function begin(here) {
  onKeyNeeded(askKey);
  setUpTheme(find("theme"));
  const switcher = find("language");
  switcher.addEventListener("click", () => setLanguage(language() === "en" ? "zh" : "en"));
  applyWords();
  let config = {}, failed = null;
  try {
    config = await getJson("api/config");
  } catch (error) {
    failed = error;
  }
  config.model ??= "";
  config.defaults ??= config.temperature === undefined ? {} : { temperature: config.temperature };
  if (!config.models?.length) config.models = [{ name: config.model, context: config.context, vision: false, card: false, defaults: config.defaults }];
  const show = () => { showLinks(config, here); showConsent(config); };
  show();
  onLanguage(show);
  return { config, failed };
}
