/** Register: images one after the other, each with its corners, what the gate finds, and the name of its type. */
import {api, session} from "./api.js";
import {busy, h, icon, later, put, touch} from "./dom.js";
import {t} from "./i18n.js";
import {bitmap, referenceImage} from "./images.js";
import {imageInput} from "./input.js";
import {done, errorBox, failed, findingCards, link, nameField, toast} from "./parts.js";
import {stage, whole} from "./stage.js";

// They outlive the view, so that a change of the language or a look at another view loses nothing.
const queue = [], finished = [];
let batch = {registered: 0, skipped: 0};  // what became of the images since the queue was last empty
let hint = "";  // the name to begin with: that of the type the reader comes from
let last = "";  // the name of the last registration: offered, not filled in, since the next image is mostly of another type
let screen = null;  // {next, list} of the view that is shown; that in which something began may have been left meanwhile

export function registerFor(label) {
  hint = label;
}

/** An image that waits no longer. */
function settle(item, how) {
  queue.splice(queue.indexOf(item), 1);
  batch[how]++;
  if (!queue.length) hint = "";
}

addEventListener("beforeunload", event => { if (queue.length) event.preventDefault(); });

export function view(root) {
  const work = h("div"), made = h("section"), steps = h("ol.steps"), summary = h("p.summary", {role: "status", "data-test": "summary"});
  let current = null, gone = false;

  async function take(files) {
    if (!queue.length) batch = {registered: 0, skipped: 0};
    for (const file of files) queue.push({file, pixels: undefined, quad: null, answer: null, name: ""});
    if (!current) await next();
    else strip();
  }

  async function next() {
    current?.stop?.abort();
    current = queue[0] ?? null;
    if (!current) {
      put(work, imageInput(take));
      if (batch.registered + batch.skipped > 1) put(summary, t("register.summary", batch));
      return;
    }
    put(summary);
    const item = current;
    if (item.pixels === undefined) item.pixels = await bitmap(item.file);
    if (!gone && item === current) show(item);
  }

  let strip = () => {};

  function show(item) {
    const {file, pixels} = item;
    put(steps);
    const findings = h("div.findings", {"aria-live": "polite", "data-test": "findings"});
    const resolves = h("p.resolves", {"aria-live": "polite", "data-test": "resolves"});
    const board = pixels ? stage(pixels, t("register.image", {name: file.name}), quad => { item.quad = quad; look(); }) : null;
    const name = nameField({value: item.name || hint, onname: inspect});
    name.input.addEventListener("input", () => { item.name = name.value; });
    const same = last && last !== name.value ? h("p.quiet", {}, t("register.same"), " ", h("button.link", {type: "button", "data-test": "same", onclick: () => {
      item.name = name.value = last;
      name.input.focus();
      inspect();
    }}, last)) : null;
    const save = h("button.main", {type: "submit", "data-test": "save"}, icon("check"), h("span", {}, t("register.save")));
    const skip = h("button", {type: "button", "data-test": "skip", onclick: () => busy(skip, drop)}, t("register.skip"));
    const all = h("button", {type: "button", hidden: true, "data-test": "all", onclick: () => busy(all, saveAll)});
    const form = h("form.card", {onsubmit: event => { event.preventDefault(); busy(save, () => register(item)); }},
      name.element, same, resolves, findings, h("div.buttons", {}, save, skip), all);
    const count = h("div.batch", {"data-test": "count"});
    const look = later(inspect, 250);
    let refused = null;  // the name for which the gate found something: it is overruled for that name alone

    strip = () => {
      const passed = batch.registered + batch.skipped, total = passed + queue.length;
      put(count, h("p.file-name", {}, total > 1 ? t("register.count", {n: passed + 1, total, name: file.name}) : file.name),
        total > 1 ? h("progress", {max: total, value: passed, "aria-label": t("register.nav")}) : null);
      all.hidden = queue.length < 2;
      put(all, t("register.all", {n: queue.length}));
    };

    /** What adding it would say. */
    async function inspect() {
      item.stop?.abort();
      const stop = item.stop = new AbortController(), label = name.value;
      form.setAttribute("aria-busy", "true");
      try {
        const answer = await api.upload("inspect", file, {label, quad: item.quad && JSON.stringify(item.quad)}, stop.signal);
        item.answer = answer;
        if (!item.quad) board?.show(answer.quad ?? whole(answer));
        judge(answer.findings, label);
        put(resolves, answer.resolves ? [icon("review"), t("register.resolves", {n: answer.resolves})] : "");
      } catch (error) {
        if (error.name !== "AbortError") put(findings, errorBox(error, inspect));
      }
      if (item.stop === stop) form.removeAttribute("aria-busy");
    }

    function judge(list, label) {
      refused = list.length ? label : null;
      put(findings, list.length ? findingCards(list, pixels) : "");
      put(save.lastChild, t(list.length ? "register.force" : "register.save"));
      save.classList.toggle("bad", list.length > 0);
      put(skip, t(list.length ? "register.again" : "register.skip"));
    }

    async function register(one) {
      item.stop?.abort();
      const label = name.value;
      if (!label) return;
      form.inert = true;
      try {
        const {event, new_type: isNew} = await add(one, label, refused === label);
        done(t(isNew ? "register.new" : "register.added", {label}), [event], () => forget([event]));
        await screen.next();
      } catch (error) {
        if (error.status === 409 && error.details.findings?.length) judge(error.details.findings, label);
        else failed(error);
      } finally {
        form.inert = false;
      }
    }

    /** All that wait, under one name; those that the gate refuses stay. */
    async function saveAll() {
      if (!form.reportValidity()) return;
      const label = name.value, events = [];
      let failure = null, left = 0;
      form.inert = true;
      for (const one of [...queue]) {
        try {
          events.push((await add(one, label, false)).event);
          strip();
        } catch (error) {
          one.name = label;
          left++;
          if (error.status !== 409 && error.status !== 415 && error.status !== 422) { failure = error; break; }
        }
      }
      form.inert = false;
      if (failure) failed(failure);
      else if (left) toast(t("register.left", {n: left}), {bad: true});
      else done(t("register.added", {label}), events, () => forget(events));
      await screen.next();
    }

    /** The image is not registered; a wrong click loses neither it nor its corners. */
    async function drop() {
      settle(item, "skipped");
      item.pixels = undefined;  // decoded again where it comes back
      toast(t("register.skipped", {name: file.name}), {undo: () => {
        queue.unshift(item);
        batch.skipped--;
        screen.next();
      }});
      await next();
      pixels?.close();
    }

    const tools = board ? h("div.buttons.tools", {},
      h("button", {type: "button", "data-test": "whole", onclick: () => { item.quad = whole(board); board.show(item.quad); inspect(); }}, t("register.whole")),
      h("button", {type: "button", "data-test": "refind", onclick: () => { item.quad = null; inspect(); }}, t("register.find"))) : null;
    put(work, h("div.split", {},
      h("div", {}, count, board ? board.element : h("div.note", {}, icon("warning"), h("p", {}, t("register.nopreview", {name: file.name}))),
        board ? h("p.hint", {}, t("register.drag")) : null, tools),
      h("div", {}, form, h("div.more-input", {}, imageInput(take, {compact: true})))));
    if (item.quad) board?.show(item.quad);
    strip();
    inspect();
    if (!touch()) name.input.focus({preventScroll: true});
  }

  async function add(item, label, force) {
    const answer = await api.upload("references", item.file, {
      label, force: force ? "true" : null, quad: item.quad && JSON.stringify(item.quad), source: item.file.name.slice(0, 200)});
    last = label;
    finished.unshift({...answer, collection: session.collection});
    finished.length = Math.min(finished.length, 12);
    settle(item, "registered");
    item.pixels?.close();
    screen.list();
    return answer;
  }

  /** What was undone is no longer listed as registered. */
  function forget(events) {
    for (let at = finished.length - 1; at >= 0; at--) if (events.includes(finished[at].event)) finished.splice(at, 1);
    screen.list();
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
      put(made, errorBox(error, () => { list(); return welcome(); }));
    }
  }

  root.append(work, summary, steps, made);
  screen = {next, list};
  next();
  list();
  welcome();
  return () => { gone = true; current?.stop?.abort(); };
}
