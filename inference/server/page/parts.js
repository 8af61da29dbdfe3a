/** What several views show: errors in plain words, short messages, questions, names with completion, scores, findings. */
import {api, Problem} from "./api.js";
import {busy, h, icon, later, put, unique} from "./dom.js";
import {has, score, t} from "./i18n.js";
import {referenceImage, shown} from "./images.js";

const STAY = 9000;  // ms that a short message stays
const SILENT = ["no-answer", "internal-error", "key-required", "invalid-key"];  // errors of which the server says no more

/** An error as one sentence of the reader's language, and what the server said about it. */
export function words(error) {
  if (!(error instanceof Problem)) return [t("error.page"), error.message];
  const known = [`error.${error.code}`, `error.${error.status}`].find(has);
  return [known ? t(known) : t("error.other"), SILENT.includes(error.code) ? "" : error.message];
}

export function errorBox(error) {
  const [plain, detail] = words(error);
  return h("div.note.bad", {role: "alert"}, icon("warning"), h("div", {}, h("p", {}, plain), detail ? h("p.detail", {lang: "en"}, detail) : null));
}

/** Shows an error as a short message. */
export function failed(error) {
  if (error.name === "AbortError") return;
  const [plain, detail] = words(error);
  toast(plain, {detail, bad: true});
}

const toasts = () => document.getElementById("toasts");

/** A short message; `action` is [text, function]. */
export function toast(text, {detail = "", action = null, bad = false} = {}) {
  const close = () => message.remove();
  const message = h(bad ? "div.toast.bad" : "div.toast", {},
    icon(bad ? "warning" : "check"), h("div.grow", {}, h("p", {}, text), detail ? h("p.detail", {}, detail) : null),
    action ? h("button.plain", {type: "button", onclick: () => { close(); action[1](); }}, action[0]) : null,
    h("button.plain.round", {type: "button", "aria-label": t("close"), onclick: close}, icon("cross")));
  let timer = setTimeout(close, STAY);
  const hold = () => clearTimeout(timer), release = () => { hold(); timer = setTimeout(close, STAY); };
  for (const [event, act] of [["pointerenter", hold], ["focusin", hold], ["pointerleave", release], ["focusout", release]]) message.addEventListener(event, act);
  put(toasts(), message);  // one at a time: they cover what lies below, and History has every undo
}

/** A message that something is done, with "undo"; `after` shows the new state. */
export function done(text, event, after) {
  const undo = async () => {
    try {
      await api.post("undo", {event});
      toast(t("undone"));
      after();
    } catch (error) {
      failed(error);
    }
  };
  toast(text, {action: event ? [t("undo"), undo] : null});
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
    return h("div.note.warn", {"data-finding": code}, icon("warning"), h("div.grow", {}, h("p", {}, text), pair ? null : h("p.detail", {lang: "en"}, message), pair));
  });
}

/** A place where nothing is yet, with the next step. */
export function empty(name, title, text, ...steps) {
  return h("div.empty", {}, h("div.empty-icon", {}, icon(name)), h("h2", {}, title), h("p", {}, text), h("div.buttons", {}, steps));
}

export const link = (href, text, ...classes) => h(["a", ...classes].join("."), {href}, text);

/** A list that comes in pages: `load(after)` gives {items, next}, `show(item)` an element; "more" asks for the next page. */
export function paged(load, show, container, none) {
  const more = h("button", {type: "button", hidden: true, onclick: () => busy(more, () => page(more.next))}, t("more"));
  async function page(after) {
    const {items, next} = await load(after);
    container.append(...items.map(show));
    more.next = next;
    more.hidden = next === null || next === undefined;
    if (!container.children.length && none) container.replaceWith(none());
  }
  const ready = page(0).catch(error => container.before(errorBox(error)));
  return {element: h("div.paged", {}, container, more), ready};
}
