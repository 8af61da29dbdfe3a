/** Classify: the answer, how sure it is, what is near, and what to do when it is wrong. */
import {api} from "./api.js";
import {busy, h, icon, put} from "./dom.js";
import {score, t} from "./i18n.js";
import {bitmap, preview, referenceImage} from "./images.js";
import {imageInput} from "./input.js";
import {details, done, errorBox, failed, labelOf, nameField, scoreBar} from "./parts.js";
import {outlined} from "./stage.js";

const NEIGHBORS = 3, KEPT = 200, PREVIEW = 400;  // PREVIEW: pixels; 200 of them take 100 MB at most
const shownResults = [];  // newest first; they outlive the view, and so does `batch`
let screen = null;  // {list, progress, spoken} of the view that is shown
let batch = {total: 0, settled: []};  // what was given at one time, or while the last of it was still asked about

export function view(root) {
  const list = h("div.results", {"data-test": "results"});
  const progress = h("div.batch", {"data-test": "batch"}), spoken = h("p.only-spoken", {role: "status"});
  screen = {list, progress, spoken};

  const area = imageInput(take);

  async function take(files) {
    area.classList.add("used");
    if (batch.settled.length === batch.total) batch = {total: 0, settled: []};
    const mine = batch;
    mine.total += files.length;
    count();
    for (const file of files) {
      const pixels = await bitmap(file), small = pixels && preview(pixels, t("classify.image", {name: file.name}), PREVIEW);
      if (mine !== batch) return;  // of another collection
      const item = {file, small, result: null, error: null, judged: null, before: null};
      item.card = h("article.card.result");
      shownResults.unshift(item);
      if (shownResults.length > KEPT) forgetOne();
      screen.list.prepend(item.card);
      await classify(item);
      mine.settled.push(item);
      count();
    }
  }

  /** How far a batch is, and then what came of it. */
  function count() {
    const {total, settled} = batch, n = settled.length;
    const of = test => settled.filter(test).length;
    put(screen.progress, total < 2 ? "" : n < total
      ? [h("p", {}, t("classify.progress", {n, total})), h("progress", {max: total, value: n, "aria-label": t("classify.nav")})]
      : h("p", {role: "status"}, t("classify.summary", {
        total, labeled: of(({result}) => result?.label), rejected: of(({result}) => result?.label === null), failed: of(({error}) => error)})));
  }

  async function classify(item) {
    item.result = item.error = null;
    paint(item);
    try {
      item.result = (await api.upload("classify", item.file, {top_k: NEIGHBORS})).results[0];
      put(screen.spoken, `${item.file.name}: ${item.result.label ?? t("classify.rejected")}`);
    } catch (error) {
      item.error = error;
    }
    paint(item);
  }

  function paint(item) {
    const {file, small, result, error, card} = item;
    const seen = h("figure", {}, small ? outlined(small, result?.found !== null ? result?.quad : null) : h("div.frame.small.blank", {}, icon("types")),
      h("figcaption.file-name", {}, file.name));
    card.setAttribute("aria-busy", String(!result && !error));
    if (error || !result) {
      put(card, seen, h("div.grow", {}, error ? errorBox(error, () => classify(item).then(count)) : h("p.quiet", {}, t("classify.wait"))));
      return;
    }
    const accepted = result.label !== null;
    const why = t(`reason.${result.reason}`, {
      label: result.top_k[0] ? labelOf(result.top_k[0]) : "", second: result.top_k[1] ? labelOf(result.top_k[1]) : "",
      score: score(result.score ?? 0), threshold: score(result.threshold), margin: score(result.margin)});
    put(card, seen, h("div.grow", {},
      h(accepted ? "p.verdict.good" : "p.verdict", {"data-test": "verdict"}, icon(accepted ? "check" : "unknown"), h("strong", {}, accepted ? result.label : t("classify.rejected"))),
      h("p.why", {"data-reason": result.reason}, why), result.error ? details(result.error) : null,
      result.search === "approximate" ? h("p.quiet", {}, t("classify.approximate", {recall: result.recall ?? 0})) : null,
      result.score === null ? null : h("div.score-line", {}, scoreBar(result.score, result.threshold, accepted), h("span.numeral", {}, score(result.score))),
      item.before ? h("p.learned", {role: "status"}, icon("check"), item.before) : null,
      neighbors(result), judge(item)));
  }

  function neighbors(result) {
    if (!result.top_k.length) return null;
    return h("details.near", {open: !matchMedia("(max-width: 640px)").matches}, h("summary", {}, t("classify.near")), h("ol", {}, result.top_k.map(one => h("li", {},
      referenceImage(one.reference, labelOf(one), 128),
      h("div.grow", {}, h("span.tile-name", {}, one.type ? h("a", {href: `#types/${one.type}`}, one.label) : labelOf(one)),
        h("div.score-line", {}, scoreBar(one.score, result.threshold, one.score >= result.threshold && one.kind === "type"), h("span.numeral", {}, score(one.score))))))));
  }

  /** "Right" and "wrong", and how to mend what is wrong. */
  function judge(item) {
    const {result} = item, more = h("div.mend", {hidden: true});
    if (result.reason === "unusable") return null;
    if (item.judged) return h("p.quiet", {role: "status"}, t(`classify.${item.judged}`));
    const say = async (correct, label) => {
      if (result.decision !== null) await api.post("feedback", {decision: result.decision, correct, ...(label ? {label} : {})});
    };
    const right = h("button", {type: "button", "data-test": "right", onclick: () => busy(right, async () => {
      try {
        await say(true, result.label);
        item.judged = "thanks";
        paint(item);
      } catch (error) {
        failed(error);
      }
    })}, icon("check"), t("classify.right"));
    const wrong = h("button", {type: "button", "data-test": "wrong", "aria-expanded": "false", onclick: () => {
      more.hidden = !more.hidden;
      wrong.setAttribute("aria-expanded", String(!more.hidden));
      if (!more.hidden) more.querySelector("input, button").focus();
    }}, icon("cross"), t("classify.wrong"));

    /** Registers the image as what it is, says so, and classifies it again. */
    const learn = async (button, query, label, text) => busy(button, async () => {
      try {
        const made = await api.upload("references", item.file, {...query, force: "true", source: t("classify.source")});
        await say(false, label).catch(() => {});  // the decision may be gone; the reference is what counts
        item.before = t("classify.before", {answer: result.label ?? t("classify.rejected")});
        item.judged = "learned";
        done(text, [made.event], () => { item.before = item.judged = null; classify(item); });
        await classify(item);
      } catch (error) {
        failed(error);
      }
    });
    const name = nameField({label: t("classify.what")});
    const register = h("button.main", {type: "submit", "data-test": "wrong-name"}, t("classify.register"));
    const unknown = h("button", {type: "button", "data-test": "wrong-unknown", onclick: () => learn(unknown, {kind: "unknown"}, null, t("classify.remembered"))}, icon("unknown"), t("classify.unknown"));
    more.append(
      h("form.inline", {onsubmit: event => { event.preventDefault(); learn(register, {label: name.value}, name.value, t("register.added", {label: name.value})); }}, name.element, register),
      result.label === null ? "" : h("div", {}, h("p.quiet", {}, t("classify.or")), unknown));
    return h("div.judge", {}, h("div.buttons", {}, h("span.quiet", {}, t("classify.ask")), right, wrong), more);
  }

  area.classList.toggle("used", shownResults.length > 0);
  root.append(area, progress, spoken, list);
  count();
  for (const item of shownResults) {
    list.append(item.card);
    paint(item);
  }
  const first = h("div");
  const look = async () => {
    try {
      const {items} = await api.get("types", {limit: 1});
      put(first, items.length ? "" : h("div.note", {}, icon("register"), h("p", {}, t("classify.empty"), " ", h("a", {href: "#register"}, t("classify.first")))));
    } catch (error) {
      put(first, errorBox(error, look));
    }
  };
  area.after(first);
  look();
}

function forgetOne() {
  const oldest = shownResults.pop();
  oldest.card.remove();
  oldest.small = null;  // the batch still counts it
}

/** Results belong to a collection. */
export function forget() {
  shownResults.length = 0;
  batch = {total: 0, settled: []};
}
