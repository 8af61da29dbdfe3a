/** The page: its frame, which view is shown, the collection, the language, the key. */
import {api, session} from "./api.js";
import {h, icon, put, unique} from "./dom.js";
import {LANGUAGES, language, preferred, speak, t} from "./i18n.js";
import {closeCamera} from "./input.js";
import {ask, failed, toast} from "./parts.js";
import * as classify from "./classify.js";
import * as models from "./models.js";
import * as register from "./register.js";
import * as review from "./review.js";
import * as threshold from "./threshold.js";
import * as types from "./types.js";

const VIEWS = {register, classify, review, types, threshold, models};
const body = document.getElementById("page");
let leave = null;

function frame() {
  document.title = t("app.title");
  put(body,
    h("a.skip", {href: "#main", onclick: event => { event.preventDefault(); document.querySelector("main h1")?.focus(); }}, t("app.skip")),
    h("header.top", {}, h("a.brand", {href: "#register"}, h("img", {src: new URL("icon.svg", import.meta.url).pathname, alt: "", width: 28, height: 28}), h("span", {}, "DocMetric")),
      h("div.top-tools", {}, h("div.collections", {}), languages())),
    h("nav.views", {"aria-label": t("app.views")}, Object.keys(VIEWS).map(name => h("a", {href: `#${name}`, "data-view": name}, icon(name), h("span", {}, t(`${name}.nav`)), name === "review" ? h("span.badge", {hidden: true}) : null))),
    h("main", {id: "main"}));
}

function languages() {
  const choice = h("select", {"aria-label": t("app.language"), "data-test": "language", onchange: async () => {
    try {
      await speak(choice.value, true);
    } catch (error) {
      choice.value = language;
      return failed(error);
    }
    await start();
    return body.querySelector("[data-test=language]").focus();  // a new one stands in its place
  }}, Object.entries(LANGUAGES).map(([tag, name]) => h("option", {value: tag, lang: tag, selected: tag === language}, name)));
  return h("span.select", {}, icon("language"), choice);
}

/** The collections, where there is a choice or the right to make one. */
async function collections() {
  const holder = body.querySelector(".collections");
  const [{items}, me] = await Promise.all([api.get("/collections"), api.get("/me")]);
  if (!items.some(one => one.name === session.collection) && items.length) session.collection = items[0].name;
  const may = me.scopes.includes("admin") && me.collections === null;
  const NEW = "+";
  const choice = h("select", {"aria-label": t("app.collection"), "data-test": "collection", onchange: async () => {
    if (choice.value === NEW) await create(items.map(one => one.name));
    else switchTo(choice.value);
    choice.value = session.collection;
  }}, items.map(one => h("option", {value: one.name, selected: one.name === session.collection}, one.name)), may ? h("option", {value: NEW}, t("app.collection.new")) : null);
  const out = session.key ? h("button.plain", {type: "button", onclick: () => { session.key = null; location.reload(); }}, t("key.forget")) : null;
  put(holder, items.length > 1 || may ? h("span.select", {}, icon("types"), choice) : null, out);
}

async function create(names) {
  const id = unique("collection");
  const field = h("input", {id, type: "text", required: true, maxlength: 64, pattern: "[A-Za-z0-9_\\-]+", title: t("app.collection.rule"), autocomplete: "off", "data-test": "collection-name"});
  if (!await ask(t("app.collection.new"), t("app.collection.text"), t("app.collection.create"), {content: h("div.field", {}, h("label", {for: id}, t("app.collection.name")), field, h("p.hint", {}, t("app.collection.rule")))})) return;
  try {
    if (!names.includes(field.value)) await api.post("/collections", {name: field.value});
    switchTo(field.value);
    await collections();
  } catch (error) {
    failed(error);
  }
}

function switchTo(name) {
  session.collection = name;
  classify.forget();
  show(false);
  toast(t("app.collection.now", {name}));
}

/** The view that the address names: #types/7 is ["types", "7"]. */
function show(focus = true) {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const view = Object.hasOwn(VIEWS, name) ? name : "register";
  const main = document.getElementById("main");
  leave?.();
  leave = null;
  closeCamera();
  const title = h("h1", {tabindex: "-1"}, t(`${view}.title`)), content = h("div.view");
  content.classList.add(view);
  put(main, title, h("p.lead", {}, t(`${view}.lead`)), content);
  for (const entry of body.querySelectorAll("nav.views a")) {
    if (entry.dataset.view === view) entry.setAttribute("aria-current", "page");
    else entry.removeAttribute("aria-current");
  }
  document.title = `${t(`${view}.title`)} · DocMetric`;
  const left = VIEWS[view].view(content, rest);
  leave = typeof left === "function" ? left : null;
  if (focus) {
    title.focus({preventScroll: true});
    scrollTo(0, 0);
  }
  waiting();
}

/** How many groups wait for a name, beside "Review". */
async function waiting() {
  const badge = body.querySelector(".badge");
  try {
    const {clusters} = await api.get("unknowns/clusters");
    badge.hidden = !clusters.length;
    put(badge, String(clusters.length));
    badge.setAttribute("aria-label", t("review.waiting", {n: clusters.length}));
  } catch { /* the view itself says what is wrong */ }
}

let asking = null;
/** One dialog for all requests that are refused at the same time. */
session.askKey = wrong => asking ??= (async () => {
  try {
    const id = unique("key");
    const field = h("input", {id, type: "password", required: true, autocomplete: "off", spellcheck: "false", "data-test": "key"});
    const content = h("div.field", {}, wrong ? h("p.note.bad", {role: "alert"}, icon("warning"), t("key.wrong")) : null, h("label", {for: id}, t("key.label")), field, h("p.hint", {}, t("key.kept")));
    if (!await ask(t("key.title"), t("key.text"), t("key.use"), {content})) return null;
    session.key = field.value.trim();
    return session.key;
  } finally {
    asking = null;
  }
})();

async function start() {
  frame();
  try {
    await collections();
  } catch (error) {
    failed(error);
  }
  show(false);
}

addEventListener("hashchange", () => show());
addEventListener("docmetric:review", waiting);
try {
  await speak(preferred());
  await start();
} catch (error) {
  put(body, h("p", {role: "alert"}, `DocMetric: ${error.message}`));
}
