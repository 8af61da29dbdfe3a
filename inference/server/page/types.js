/** Types: all that is registered; one type with its references; known unknowns; what was changed, with undo. */
import {api} from "./api.js";
import {busy, h, icon, later, put} from "./dom.js";
import {score, t, when} from "./i18n.js";
import {referenceImage} from "./images.js";
import {ask, done, empty, errorBox, failed, folded, link, loading, nameField, paged, renew, toast} from "./parts.js";
import {registerFor} from "./register.js";

const PAGE = 60, ALIKE = 3;
const FINAL = ["activate", "model", "purge"];  // events that are no rows to turn back; a model is activated again

export function view(root, [what]) {
  const tabs = h("nav.tabs", {"aria-label": t("types.tabs")}, [["types", "types.all"], ["types/unknown", "types.unknown"], ["types/history", "types.history"]].map(([to, key]) =>
    h("a", {href: `#${to}`, "aria-current": `types${what && !/^\d+$/.test(what) ? `/${what}` : ""}` === to ? "page" : null}, t(key))));
  root.append(tabs);
  if (what === "unknown") return unknowns(root);
  if (what === "history") return history(root);
  if (/^\d+$/.test(what ?? "")) return one(root, Number(what));
  return all(root);
}

function all(root) {
  const holder = h("div");
  const field = h("input", {type: "search", placeholder: t("types.search"), "aria-label": t("types.search"), "data-test": "search", oninput: later(show, 250)});
  function show() {
    const text = field.value.trim();
    const list = paged(after => api.get("types", {after, limit: PAGE, text}), tile, h("div.tiles", {"data-test": "types"}),
      () => text ? h("p.quiet", {role: "status"}, t("types.none", {text}))
                 : empty("types", t("types.empty"), t("types.empty.text"), link("#register", t("classify.first"), "button", "main")));
    renew(holder, list);
  }
  root.append(h("div.search", {}, icon("search"), field), holder);
  show();
}

function tile(type) {
  return h("a.tile", {href: `#types/${type.type}`, "data-label": type.label},
    type.cover ? referenceImage(type.cover, "") : h("div.image.blank", {}, icon("types")),
    h("span.tile-name", {}, type.label), h("span.quiet", {}, t("types.references", {n: type.references})),
    type.look_alikes.length ? h("span.chip.warn", {title: t("types.alike", {label: type.look_alikes[0].label, score: score(type.look_alikes[0].score)})}, icon("warning"), t("types.alike.short")) : null);
}

async function one(root, id) {
  const body = h("div", {}, loading());
  root.append(link("#types", [icon("back"), t("types.back")], "back"), body);
  const refresh = () => load().catch(error => put(body, errorBox(error, refresh)));

  async function load() {
    const type = await api.get(`types/${id}`);
    const list = paged(after => api.get("references", {type: id, after, limit: PAGE}), reference => card(reference, refresh), h("div.tiles", {"data-test": "references"}));
    const rename = h("button", {type: "button", "data-test": "rename", onclick: () => busy(rename, () => change(type))}, t("types.rename"));
    const merge = h("button", {type: "button", "data-test": "merge", onclick: () => busy(merge, () => unite(type))}, t("types.merge"));
    const remove = h("button.danger", {type: "button", "data-test": "remove", onclick: () => busy(remove, () => drop(type))}, icon("trash"), t("types.remove"));
    renew(body, list, h("header.type-head", {}, h("h2", {"data-test": "type-name"}, type.label),
      h("p.quiet", {}, t("types.references", {n: type.references}), " · ", t("types.threshold", {threshold: score(type.threshold)}), " · ", when(type.created)),
      type.look_alikes.length ? h("div.note.warn", {}, icon("warning"), h("div.grow", {}, h("p", {}, t("types.alike.why")),
        folded(type.look_alikes, ALIKE, other => h("li.between", {}, h("span", {}, other.label), h("span.numeral", {}, score(other.score)))))) : null,
      h("div.buttons", {}, h("button.main", {type: "button", onclick: () => { registerFor(type.label); location.hash = "register"; }}, icon("add"), t("types.add")), rename, merge, remove)));
  }

  async function change(type) {
    const name = nameField({label: t("types.new"), value: type.label});
    if (!await ask(t("types.rename.title", {label: type.label}), "", t("types.rename"), {content: name.element})) return;
    const label = name.value;
    if (!label || label === type.label) return;
    try {
      const {event} = await api.patch(`types/${id}`, {label});
      done(t("types.renamed", {label}), [event], refresh);
      await refresh();
    } catch (error) {
      const other = error.details?.type_id;  // that has this name
      if (other) await mergeInto(type, other, label);
      else failed(error);
    }
  }

  async function unite(type) {
    const name = nameField({label: t("types.into")});
    if (!await ask(t("types.merge.title", {label: type.label}), t("types.merge.how"), t("next"), {content: name.element})) return;
    const label = name.value;
    if (!label) return;
    try {
      const {items: [other]} = await api.get("types", {label});
      await mergeInto(type, other.type, label);
    } catch (error) {
      if (error.status === 404) toast(t("types.none", {text: label}), {bad: true});
      else failed(error);
    }
  }

  async function mergeInto(type, into, label) {
    if (into === id) return;
    if (!await ask(t("types.merge.ask", {label}), t("types.merge.text", {label, from: type.label, n: type.references}), t("types.merge.yes"))) return;
    try {
      const {event} = await api.post(`types/${id}/merge`, {into});
      done(t("types.merged", {label, from: type.label}), [event], () => { location.hash = `types/${id}`; });
      location.hash = `types/${into}`;
    } catch (error) {
      failed(error);
    }
  }

  async function drop(type) {
    try {
      const {event} = await api.remove(`types/${id}`);
      done(t("types.removed", {label: type.label}), [event], () => { location.hash = `types/${id}`; });
      location.hash = "types";
    } catch (error) {
      failed(error);
    }
  }

  await refresh();
}

/** A reference with what can be done to it. */
function card(reference, refresh) {
  const name = reference.label ?? t("known-unknown");
  const act = async (text, request) => {
    try {
      const {event} = await request();
      done(text, [event], refresh);
      await refresh();
    } catch (error) {
      failed(error);
    }
  };
  const move = h("button.plain", {type: "button", onclick: () => busy(move, async () => {
    const field = nameField();
    if (await ask(t("types.move.title"), t("types.move.text"), t("types.move"), {content: field.element}) && field.value) {
      await act(t("types.moved", {label: field.value}), () => api.patch(`references/${reference.reference}`, {label: field.value}));
    }
  })}, t("types.move"));
  const remove = h("button.plain", {type: "button", "aria-label": t("types.remove.image"), onclick: () => busy(remove, () => act(t("types.removed.image"), () => api.remove(`references/${reference.reference}`)))}, icon("trash"));
  return h("div.tile", {"data-reference": reference.reference}, referenceImage(reference.reference, name, 512),
    h("span.quiet", {}, when(reference.created), reference.who ? ` · ${reference.who}` : ""), h("div.buttons.between", {}, move, remove));
}

function unknowns(root) {
  const holder = h("div");
  root.append(h("p.lead", {}, t("types.unknown.lead")), holder);
  const refresh = () => renew(holder, paged(after => api.get("references", {kind: "unknown", after, limit: PAGE}), one => card(one, refresh), h("div.tiles", {"data-test": "unknowns"}),
    () => empty("unknown", t("types.unknown.empty"), t("types.unknown.empty.text"), link("#classify", t("register.try"), "button"))));
  refresh();
}

/** The server writes what happened in English; these are the sentences that have a translation. Stores keep old ones too. */
const SENTENCES = [
  [/^registered an image of a known unknown$/, "event.add-unknown", []],
  [/^registered an image of (.+)$/, "event.add", ["label"]],
  [/^registered ([\d,]+) images?$/, "event.add-many", ["count"]],
  [/^removed an image of (.+)$/, "event.remove-image", ["label"]],
  [/^removed (.+) with ([\d,]+) images?$/, "event.remove", ["label", "count"]],
  [/^renamed (.+) to (.+)$/, "event.rename", ["label", "new"]],
  [/^merged (.+) into (.+)$/, "event.merge", ["label", "new"]],
  [/^moved an image of (.+) to (.+)$/, "event.move", ["label", "new"]],
  [/^set the threshold to automatic$/, "event.automatic", []],
  [/^set the threshold to ([\d.]+)$/, "event.threshold", ["value"]],
  [/^set the threshold of (.+) to automatic$/, "event.automatic-type", ["label"]],
  [/^set the threshold of (.+) to ([\d.]+)$/, "event.threshold-type", ["label", "value"]],
  [/^switched to the model (.+)$/, "event.activate", ["label"]],
  [/^removed the model (.+)$/, "event.remove-model", ["label"]],
];

export function sentence(text) {
  const undone = /^undone: (.+)$/.exec(text);
  if (undone) return t("event.undo", {text: sentence(undone[1])});
  for (const [pattern, key, names] of SENTENCES) {
    const found = pattern.exec(text);
    if (found) return t(key, Object.fromEntries(names.map((name, i) => [name, (found[i + 1] ?? "").replace("a known unknown", t("known-unknown"))])));
  }
  return text;
}

function history(root) {
  const holder = h("div");
  root.append(h("p.lead", {}, t("history.lead")), holder);
  const row = event => {
    const undo = h("button", {type: "button", onclick: () => busy(undo, async () => {
      try {
        await api.post("undo", {event: event.event});
        toast(t("undone"));
        refresh();
      } catch (error) {
        failed(error);
      }
    })}, icon("undo"), t(event.undoes ? "history.redo" : "undo"));
    return h(event.undone_by ? "li.undone" : "li", {"data-event": event.event}, h("div.grow", {}, h("p", {}, sentence(event.text)), h("p.quiet", {}, when(event.when), event.who ? ` · ${event.who}` : "")),
      event.undone_by ? h("span.chip", {}, t("history.undone")) : FINAL.includes(event.what) ? null : undo);
  };
  const refresh = () => renew(holder, paged(after => api.get("events", {after, limit: PAGE, newest: "true"}), row, h("ol.events", {"data-test": "events"}),
    () => empty("history", t("history.empty"), t("history.empty.text"))));
  refresh();
}
