/** Register: images one after the other, each with its corners, what the gate finds, and the name of its type. */
import {api, session} from "./api.js";
import {busy, h, icon, later, put} from "./dom.js";
import {t} from "./i18n.js";
import {bitmap, referenceImage} from "./images.js";
import {imageInput} from "./input.js";
import {done, errorBox, failed, findingCards, link, nameField, toast} from "./parts.js";
import {stage, whole} from "./stage.js";

// They outlive the view, so that a change of the language or a look at another view loses nothing.
const queue = [], finished = [];
let hint = "";  // the name to begin with: the last one, or that of the type the reader comes from

export function registerFor(label) {
  hint = label;
}

export function view(root) {
  const work = h("div", {"aria-live": "off"}), made = h("section", {"aria-live": "polite"}), steps = h("ol.steps");
  let current = null, gone = false;

  async function take(files) {
    for (const file of files) queue.push({file, pixels: undefined, quad: null, answer: null, name: ""});
    if (!current) await next();
    else strip();
  }

  async function next() {
    current?.stop?.abort();
    current = queue[0] ?? null;
    if (!current) {
      put(work, imageInput(take));
      return;
    }
    if (current.pixels === undefined) current.pixels = await bitmap(current.file);
    if (!gone) show(current);
  }

  let strip = () => {};

  function show(item) {
    const {file, pixels} = item;
    put(steps);
    const findings = h("div.findings", {"aria-live": "polite", "data-test": "findings"});
    const resolves = h("p.resolves", {"aria-live": "polite", "data-test": "resolves"});
    const board = pixels ? stage(pixels, t("register.image", {name: file.name}), quad => { item.quad = quad; look(); }) : null;
    const name = nameField({value: item.name || hint, onname: text => { item.name = text; inspect(); }});
    const save = h("button.main", {type: "submit", "data-test": "save"}, icon("check"), h("span", {}, t("register.save")));
    const skip = h("button", {type: "button", "data-test": "skip", onclick: drop}, t("register.skip"));
    const all = h("button", {type: "button", hidden: true, "data-test": "all", onclick: () => busy(all, saveAll)});
    const form = h("form.card", {onsubmit: event => { event.preventDefault(); busy(save, () => register(item)); }},
      name.element, resolves, findings, h("div.buttons", {}, save, skip), all);
    const thumbs = h("div.strip");
    const look = later(inspect, 250);
    let refused = false;

    strip = () => {
      put(thumbs, queue.length > 1 ? h("p.count", {"data-test": "count"}, t("register.count", {n: queue.length})) : null);
      all.hidden = queue.length < 2;
      put(all, t("register.all", {n: queue.length}));
    };

    /** What adding it would say. */
    async function inspect() {
      item.stop?.abort();
      const stop = item.stop = new AbortController();
      form.setAttribute("aria-busy", "true");
      try {
        const answer = await api.upload("inspect", file, {label: name.value, quad: item.quad && JSON.stringify(item.quad)}, stop.signal);
        item.answer = answer;
        if (!item.quad) board?.show(answer.quad ?? whole(answer));
        judge(answer.findings);
        put(resolves, answer.resolves ? [icon("review"), t("register.resolves", {n: answer.resolves})] : "");
      } catch (error) {
        if (error.name !== "AbortError") put(findings, errorBox(error));
      }
      if (item.stop === stop) form.removeAttribute("aria-busy");
    }

    function judge(list) {
      refused = list.length > 0;
      put(findings, refused ? findingCards(list, pixels) : "");
      put(save.lastChild, t(refused ? "register.force" : "register.save"));
      save.classList.toggle("bad", refused);
      put(skip, t(refused ? "register.again" : "register.skip"));
    }

    async function register(one) {
      item.stop?.abort();
      const label = name.value;
      if (!label) return;
      try {
        await add(one, label, refused);
        queue.splice(queue.indexOf(one), 1);
        await next();
      } catch (error) {
        if (error.status === 409 && error.details.findings?.length) {
          judge(error.details.findings);
          save.focus();
        } else failed(error);
      }
    }

    /** All that wait, under one name; those that the gate refuses stay. */
    async function saveAll() {
      if (!form.reportValidity()) return;
      const label = name.value;
      let refusedOnes = 0;
      for (const one of [...queue]) {
        try {
          await add(one, label, false);
          queue.splice(queue.indexOf(one), 1);
        } catch (error) {
          if (error.status !== 409) { failed(error); break; }
          one.name = label;
          refusedOnes++;
        }
      }
      if (refusedOnes) toast(t("register.left", {n: refusedOnes}), {bad: true});
      await next();
    }

    async function drop() {
      queue.splice(queue.indexOf(item), 1);
      pixels?.close();
      await next();
      work.querySelector("button")?.focus();
    }

    const tools = board ? h("div.buttons.tools", {},
      h("button", {type: "button", "data-test": "whole", onclick: () => { item.quad = whole(board); board.show(item.quad); inspect(); }}, t("register.whole")),
      h("button", {type: "button", "data-test": "refind", onclick: () => { item.quad = null; inspect(); }}, t("register.find"))) : null;
    put(work, h("div.split", {},
      h("div", {}, board ? board.element : h("div.note", {}, icon("warning"), h("p", {}, t("register.nopreview", {name: file.name}))),
        board ? h("p.hint", {}, t("register.drag")) : null, tools, thumbs),
      h("div", {}, form, h("div.more-input", {}, imageInput(take, {compact: true})))));
    if (item.quad) board?.show(item.quad);
    strip();
    inspect();
    if (matchMedia("(hover: hover)").matches) name.input.focus({preventScroll: true});  // no keyboard over the image on a phone
  }

  async function add(item, label, force) {
    const answer = await api.upload("references", item.file, {
      label, force: force ? "true" : null, quad: item.quad && JSON.stringify(item.quad), source: item.file.name.slice(0, 200)});
    hint = label;
    finished.unshift({...answer, collection: session.collection, resolves: item.answer?.resolves ?? 0});
    finished.length = Math.min(finished.length, 12);
    item.pixels?.close();
    done(t(answer.new_type ? "register.new" : "register.added", {label}), answer.event, () => {
      const at = finished.findIndex(one => one.event === answer.event);
      if (at >= 0) finished.splice(at, 1);
      list();
    });
    list();
  }

  function list() {
    const here = finished.filter(one => one.collection === session.collection);
    put(made, here.length ? [
      h("h2", {}, t("register.done")),
      h("div.tiles.small", {"data-test": "made"}, here.map(one => h("a.tile", {href: `#types/${one.type}`}, referenceImage(one.reference, one.label), h("span.tile-name", {}, one.label)))),
      h("div.buttons", {}, link("#classify", t("register.try"), "button"))] : "");
  }

  async function welcome() {
    try {
      const {items} = await api.get("types", {limit: 1});
      if (!items.length && !finished.length && !queue.length && !gone) {
        put(steps, ["one", "two", "three"].map(step => h("li", {}, t(`welcome.${step}`))));
      }
    } catch (error) {
      put(made, errorBox(error));
    }
  }

  root.append(work, steps, made);
  next();
  list();
  welcome();
  return () => { gone = true; current?.stop?.abort(); };
}
