/** What several views show: errors in plain words, short messages, questions, names with completion, scores, findings. */
import {api, Problem} from "./api.js";
import {busy, h, icon, later, put, unique} from "./dom.js";
import {has, score, t} from "./i18n.js";
import {referenceImage, shown} from "./images.js";

const STAY = 9000;  // ms that a short message stays
const SILENT = ["no-answer", "internal-error", "key-required", "invalid-key"];  // errors of which the server says no more
const VAGUE = ["error.invalid-value", "error.400", "error.conflict", "error.other"];  // it takes the server's own words to understand them

/** An error as one sentence of the reader's language, and what the server said about it, in English. */
function words(error) {
  if (!(error instanceof Problem)) return [h("p", {}, t("error.page")), details(error.message)];
  const known = [`error.${error.code}`, `error.${error.status}`].find(has) ?? "error.other";
  return [h("p", {}, t(known)), SILENT.includes(error.code) ? null : details(error.message, VAGUE.includes(known))];
}

/** What stands behind a sentence. Small print of the server is in English. */
export const details = (text, open = false) => h("details.detail", {open}, h("summary", {}, t("said")), h("p", {lang: "en"}, text));

/** Whether the same request may succeed another time: the way to the server, or the server itself, failed. */
const passing = ({status}) => !status || status === 401 || status === 408 || status >= 500;

/** An error in place of what should stand there; `again` tries it once more, where that may help. */
export function errorBox(error, again = null) {
  const retry = again && passing(error) ? h("button", {type: "button", "data-test": "again", onclick: () => busy(retry, again)}, t("again")) : null;
  return h("div.note.bad", {role: "alert"}, icon("warning"), h("div.grow", {}, words(error), retry));
}

/** What stands in a place until its content comes; the style sheet shows it only where that takes long. */
export const loading = () => h("p.loading", {role: "status"}, t("loading"));

/** Shows an error as a short message. */
export function failed(error) {
  if (error.name === "AbortError") return;
  toast(words(error), {bad: true});
}

const toasts = () => document.getElementById("toasts");

/** A short message: a text, or elements. `undo` takes back what it tells of. One that something failed stays until it is closed. */
export function toast(text, {undo = null, bad = false} = {}) {
  const close = () => message.remove();
  const message = h(bad ? "div.toast.bad" : "div.toast", {},
    icon(bad ? "warning" : "check"), h("div.grow", {}, typeof text === "string" ? h("p", {}, text) : text),
    undo ? h("button.plain", {type: "button", "data-test": "undo", title: t("undo.key"), "aria-keyshortcuts": "Control+Z", onclick: () => { close(); undo(); }}, icon("undo"), t("undo")) : null,
    h("button.plain.round", {type: "button", "aria-label": t("close"), onclick: close}, icon("cross")));
  let timer;
  const hold = () => clearTimeout(timer), release = () => { hold(); if (!bad) timer = setTimeout(close, STAY); };
  release();
  for (const [event, act] of [["pointerenter", hold], ["focusin", hold], ["pointerleave", release], ["focusout", release]]) message.addEventListener(event, act);
  put(toasts(), message);  // one at a time: they cover what lies below, and History has every undo
}

// Ctrl+Z is the message's "undo", but in a field with text it is the browser's own.
addEventListener("keydown", event => {
  const undo = document.querySelector("#toasts [data-test=undo]");
  if (!undo || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.key.toLowerCase() !== "z") return;
  if (event.target.matches("input[type=text], input[type=search], input[type=password]") && event.target.value) return;
  event.preventDefault();
  undo.click();
});

/** A message that something is done, with "undo" of its events; `after` shows the new state, and `undone` says it. */
export function done(text, events, after, undone = t("undone")) {
  toast(text, {undo: async () => {
    try {
      for (const event of [...events].reverse()) await api.post("undo", {event});
      toast(undone);
    } catch (error) {
      failed(error);
    }
    after();
  }});
}

/** Asks before something happens; true when the reader says yes. */
export function ask(title, text, yes, {bad = false, content = null} = {}) {
  return new Promise(resolve => {
    const heading = unique("ask");
    const dialog = h("dialog", {"aria-labelledby": heading, onclose: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); }},
      h("form", {method: "dialog"}, h("h2", {id: heading}, title), text ? h("p", {}, text) : null, content,
        h("div.buttons.end", {}, h("button", {type: "button", onclick: () => dialog.close("no")}, t("cancel")), h(bad ? "button.main.bad" : "button.main", {value: "yes"}, yes))));
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A field for the name of a type, completed from those that are registered. `onname` hears of it when typing rests. */
export function nameField({label = t("name.label"), value = "", onname = () => {}, required = true} = {}) {
  const id = unique("name"), options = h("datalist", {id: unique("names")});
  const complete = later(async () => {
    try {
      const {items} = await api.get("types", {text: input.value.trim(), limit: 20});
      put(options, items.map(type => h("option", {value: type.label})));
    } catch { /* a field without completion is a field */ }
  }, 200);
  const heard = later(() => onname(input.value.trim()), 450);
  const input = h("input", {id, type: "text", list: options.id, autocomplete: "off", maxlength: 200, required, value, "data-test": "name",
    placeholder: t("name.example"), oninput: () => { complete(); heard(); }, onfocus: complete});
  const element = h("div.field", {}, h("label", {for: id}, label), input, options);
  return {element, input, get value() { return input.value.trim(); }, set value(next) { input.value = next; }};
}

/** Scores lie in 0..1, and nearly all of them in the upper half: the bar shows that half. */
const place = value => `${100 * Math.min(1, Math.max(0, 2 * value - 1))}%`;

export function scoreBar(value, threshold, good) {
  const fill = h("span.fill"), tick = h("span.tick");
  fill.style.width = place(value);
  tick.style.left = place(threshold);
  return h(good ? "span.bar.good" : "span.bar", {role: "img", "aria-label": t("score.spoken", {score: score(value), threshold: score(threshold)})}, fill, tick);
}

/** The label of a result's candidate, or that it is a known unknown. */
export const labelOf = candidate => candidate.label ?? t("known-unknown");

/** What the registration gate found, each with both images where it is about another reference. `pixels`: of the new one, or null. */
export function findingCards(findings, pixels) {
  return findings.map(({code, message, details = {}}) => {
    const label = details.label ?? t("known-unknown");
    const text = has(`finding.${code}`) ? t(`finding.${code}`, {label}) : message;
    const pair = details.reference ? h("div.pair", {},
      pixels ? h("figure", {}, shown(pixels, t("finding.yours"), 512), h("figcaption", {}, t("finding.yours"))) : null,
      h("figure", {}, referenceImage(details.reference, t("finding.theirs", {label}), 512), h("figcaption", {}, t("finding.theirs", {label}), details.score ? ` · ${score(details.score)}` : ""))) : null;
    return h("div.note.warn", {"data-finding": code}, icon("warning"), h("div.grow", {}, h("p", {}, text), pair ?? (text === message ? null : details(message))));
  });
}

/** A place where nothing is yet, with the next step. */
export function empty(name, title, text, ...steps) {
  return h("div.empty", {}, h("div.empty-icon", {}, icon(name)), h("h2", {}, title), h("p", {}, text), h("div.buttons", {}, steps));
}

export const link = (href, text, ...classes) => h(["a", ...classes].join("."), {href}, text);

/** A list of the first `most` items, and of the others behind "more"; `show(item)` gives an <li>. */
export function folded(items, most, show) {
  const rest = items.slice(most);
  return [h("ul.plain-list", {}, items.slice(0, most).map(show)),
    rest.length ? h("details", {}, h("summary", {}, t("more.n", {n: rest.length})), h("ul.plain-list", {}, rest.map(show))) : null];
}

/** A list that comes in pages: `load(after)` gives {items, next}, `show(item)` an element; "more" asks for the next page. */
export function paged(load, show, container, none) {
  const more = h("button", {type: "button", hidden: true, "data-test": "more", onclick: () => busy(more, () => page(more.next))}, t("more"));
  const state = h("div.state", {}, loading());
  async function page(after) {
    try {
      const {items, next} = await load(after);
      container.append(...items.map(show));
      more.next = next;
      more.hidden = next === null || next === undefined;
      put(state);
      if (!container.children.length && none) container.replaceWith(none());
    } catch (error) {
      more.hidden = true;
      put(state, errorBox(error, () => page(after)));
    }
  }
  const element = h("div.paged", {}, container, state, more);
  element.ready = page(0);
  return element;
}

/** Shows `list`, of `paged`, in the place of another; the place keeps its height until the list has come, so that nothing jumps. */
export function renew(place, list, ...before) {
  place.style.minHeight = `${place.offsetHeight}px`;
  put(place, before, list);
  list.ready.then(() => { place.style.minHeight = ""; });
}
