/** Threshold: what another one would have made of the stored decisions, before it is set. */
import {api} from "./api.js";
import {busy, h, later, put, svg, unique} from "./dom.js";
import {number, percent, score, t, when} from "./i18n.js";
import {done, errorBox, failed, folded, loading} from "./parts.js";

const LEAST = 0.5, STEP = 0.001;  // of the slider: lower scores are those of things that have nothing in common
const BINS = 50, DECISIONS = 1000, HEIGHT = 90;
const OWN = 8;  // types with a threshold of their own before "more"

export function view(root) {
  const body = h("div.columns", {}, loading());
  root.append(body);
  const refresh = () => load().catch(error => put(body, errorBox(error, refresh)));

  let suggested; // the slider's value for the suggestion: types that look alike keep a higher threshold with it

  async function load() {
    const [used, {items}] = await Promise.all([api.get("threshold"), api.get("decisions", {limit: DECISIONS, newest: "true"})]);
    const id = unique("slider"), value = h("output.numeral.big", {for: id, "data-test": "value"});
    const slider = h("input", {id, type: "range", min: LEAST, max: 1, step: STEP, value: used.threshold, "data-test": "slider", oninput: () => { spoken(); replay(); }});
    const counts = h("div", {"aria-live": "polite", "data-test": "replay"});
    const use = h("button.main", {type: "button", "data-test": "use", onclick: () => busy(use, () => set(slider.value === suggested ? "suggestion" : Number(slider.value)))});
    const automatic = h("button", {type: "button", "data-test": "automatic", hidden: used.automatic, onclick: () => busy(automatic, () => set(null))}, t("threshold.automatic.again"));
    const marks = histogram(items, used.threshold);
    const replay = later(async () => {
      try {
        show(await api.get("threshold/replay", {threshold: slider.value}));
      } catch (error) {
        put(counts, errorBox(error, replay));
      }
    }, 120);

    function spoken() {
      const now = Number(slider.value);
      put(value, score(now));
      slider.setAttribute("aria-valuetext", score(now));
      put(use, t("threshold.use", {threshold: score(now)}));
      use.disabled = Math.abs(now - used.threshold) < STEP / 2;
      marks.mark(now);
    }

    function show(replayed) {
      if (!replayed.decisions) {
        put(counts, h("p.quiet", {}, t("threshold.nothing"), " ", h("a", {href: "#classify"}, t("register.try"))));
        return;
      }
      const row = (key, count, kind) => count ? h("li", {class: kind}, t(`threshold.${key}`, {n: count})) : null;
      put(counts, h("dl.figures", {},
        figure("threshold.labeled", replayed.labeled_then, "labeled"), figure("threshold.rejected", replayed.decisions - replayed.labeled_then, "rejected"),
        figure("threshold.changed", replayed.gained + replayed.lost, "changed")),
        h("ul.effects", {}, row("gained", replayed.gained), row("lost", replayed.lost), row("right-lost", replayed.right_lost, "bad"),
          row("wrong-lost", replayed.wrong_lost, "good"), row("wrong-rejections-gained", replayed.wrong_rejections_gained, "good")),
        h("p.quiet", {}, t("threshold.of", {n: replayed.decisions, when: when(replayed.since)})));
    }

    put(body,
      h("section.card.threshold", {}, h("h2", {}, h("label", {for: id}, t("threshold.slider"))), h("p.quiet", {"data-test": "used"}, t(used.automatic ? "threshold.used.automatic" : "threshold.used", {threshold: score(used.threshold)})),
        value, h("div.slider", {}, marks.element, slider, h("div.axis", {"aria-hidden": "true"}, [0.5, 0.6, 0.7, 0.8, 0.9, 1].map(at => h("span", {}, number(at, 1))))),
        items.length ? h("p.legend", {}, h("span.key.good"), t("threshold.legend.labeled"), h("span.key"), t("threshold.legend.rejected")) : null,
        counts, h("div.buttons", {}, use, automatic)),
      h("div", {}, suggestion(slider, spoken, replay), special(used)));
    spoken();
    replay();
  }

  async function set(threshold) {
    try {
      const {event, threshold: now} = await api.put("threshold", {threshold});
      done(t(now === null ? "threshold.set.automatic" : "threshold.set", {threshold: score(now ?? 0)}), [event], refresh);
      await refresh();
    } catch (error) {
      failed(error);
    }
  }

  function suggestion(slider, spoken, replay) {
    const card = h("section.card", {"aria-busy": "true"}, h("h2", {}, t("suggestion.title")));
    api.get("threshold/suggestion").then(found => {
      card.removeAttribute("aria-busy");
      card.append(h("p.numeral.big", {"data-test": "suggested"}, score(found.threshold)), ...grounds(found),
        h("div.buttons", {}, h("button", {type: "button", "data-test": "suggest", onclick: () => {
          slider.value = found.threshold;
          suggested = slider.value;
          slider.focus();
          spoken();
          replay();
        }}, t("suggestion.look"))));
    }).catch(error => { card.removeAttribute("aria-busy"); card.append(errorBox(error)); });
    return card;
  }

  /** Types that have a threshold of their own. */
  function special(used) {
    return used.types.length ? h("section.card", {}, h("h2", {}, t("threshold.types")), h("p.quiet", {}, t("threshold.types.why")),
      folded(used.types, OWN, type => h("li.between", {}, h("a", {href: `#types/${type.type}`}, type.label), h("span.numeral", {}, score(type.threshold))))) : null;
  }

  refresh();
}

const figure = (key, value, name) => h("div", {}, h("dt", {}, t(key)), h("dd.numeral", {"data-test": name}, number(value)));

/** What the suggestion stands on, and what it would do to unknown documents and to registered ones. */
function grounds(found) {
  const rate = (key, share) => share ? h("li", {}, t(key, {rate: percent(share.rate), low: percent(share.low), high: percent(share.high)})) : null;
  const {types, references, known_unknowns: unknowns, feedback_unknown: told, feedback_right: right} = found.based_on;
  return [h("p", {}, t(`suggestion.${found.source}`, {target: percent(found.target), needed: found.needed})),
    h("ul.facts", {}, rate("suggestion.unknown", found.unknown_labeled), rate("suggestion.right", found.right_rejected)),
    h("p.quiet", {}, t("suggestion.based", {types, references, unknowns, feedback: told + right}))];
}

/** How many of the newest decisions had which score: those with a label in the accent's color. */
function histogram(decisions, used) {
  const counts = Array.from({length: BINS}, () => [0, 0]);
  for (const {score: value, label} of decisions) {
    if (value !== null && value >= LEAST) counts[Math.min(BINS - 1, Math.floor((value - LEAST) / (1 - LEAST) * BINS))][label === null ? 1 : 0]++;
  }
  const most = Math.max(1, ...counts.map(([labeled, rejected]) => labeled + rejected));
  const at = value => 100 * (value - LEAST) / (1 - LEAST), tall = count => HEIGHT * count / most;
  const bars = counts.flatMap(([labeled, rejected], i) => [
    svg("rect.labeled", {x: 100 * i / BINS, width: 80 / BINS, y: HEIGHT - tall(labeled), height: tall(labeled)}),
    svg("rect.rejected", {x: 100 * i / BINS, width: 80 / BINS, y: HEIGHT - tall(labeled) - tall(rejected), height: tall(rejected)})]);
  const now = svg("line.now", {x1: at(used), x2: at(used), y1: 0, y2: HEIGHT});
  const line = svg("line.mark", {y1: 0, y2: HEIGHT});
  const element = svg("svg.histogram", {viewBox: `0 0 100 ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": t("threshold.histogram", {n: decisions.length})}, bars, now, line);
  return {element, mark(value) { line.setAttribute("x1", at(value)); line.setAttribute("x2", at(value)); }};
}
