/** The language of the page: chosen by the browser, changed by the reader, remembered. Texts lie in locales/LANGUAGE.json. */

export const LANGUAGES = {en: "English", "zh-Hant": "繁體中文", "zh-Hans": "简体中文"};
const MEMORY = "docmetric.language";
const catalogs = {};
export let language = "en";

/** The first of the reader's languages that there is a catalog for. */
export function preferred() {
  for (const wanted of [remembered(), ...navigator.languages]) {
    const tag = (wanted ?? "").toLowerCase();
    if (/^zh\b/.test(tag)) return /hant|-tw|-hk|-mo/.test(tag) ? "zh-Hant" : "zh-Hans";
    if (/^en\b/.test(tag)) return "en";
  }
  return "en";
}

function remembered() {
  try {
    return localStorage.getItem(MEMORY);
  } catch {
    return null;  // the browser allows no storage: the choice holds for this visit
  }
}

/** Loads a catalog; from then on `t` speaks that language. */
export async function speak(chosen, remember = false) {
  if (!catalogs[chosen]) {
    const answer = await fetch(new URL(`locales/${chosen}.json`, import.meta.url));
    if (!answer.ok) throw new Error(`locales/${chosen}.json: ${answer.status}`);
    catalogs[chosen] = await answer.json();
  }
  language = chosen;
  document.documentElement.lang = chosen;
  if (remember) {
    try {
      localStorage.setItem(MEMORY, chosen);
    } catch { /* as above */ }
  }
}

/** How dates and numbers are written: as the reader's own country does it, where that speaks the language of the page. */
function locale() {
  const script = tag => { const {language: spoken, script: written} = new Intl.Locale(tag).maximize(); return `${spoken}-${written}`; };
  return navigator.languages.find(tag => script(tag) === script(language)) ?? language;
}

/** Whether there is a text for `key`. */
export const has = key => key in (catalogs[language] ?? {});

/**
 * The text for `key`; `{name}` in it is replaced by `values.name`. A text that depends on a number is an object
 * {"one": ..., "other": ...}, chosen by `values.n` as the language does it.
 */
export function t(key, values = {}) {
  let text = catalogs[language]?.[key];
  if (text === undefined) {
    console.error(`no text for "${key}" in ${language}`);
    return key;
  }
  if (typeof text === "object") text = text[new Intl.PluralRules(language).select(values.n)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (all, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : value ?? all;
  });
}

export const number = (value, digits = 0) =>
  new Intl.NumberFormat(locale(), {minimumFractionDigits: digits, maximumFractionDigits: Math.max(digits, value % 1 ? 3 : 0)}).format(value);

/** A score as the page writes it: three decimals. */
export const score = value =>
  new Intl.NumberFormat(locale(), {minimumFractionDigits: 3, maximumFractionDigits: 3}).format(value);

export const percent = (value, digits = 1) =>
  new Intl.NumberFormat(locale(), {style: "percent", maximumFractionDigits: digits}).format(value);

/** Seconds since 1970 as a date and time of the reader. */
export const when = seconds =>
  new Intl.DateTimeFormat(locale(), {dateStyle: "medium", timeStyle: "short"}).format(new Date(seconds * 1000));
