/** Models: a new one beside the one in use, what it would change, the switch, and the way back. */
import {api} from "./api.js";
import {busy, h, icon, put, unique} from "./dom.js";
import {number, percent, score, t, when} from "./i18n.js";
import {image, referenceImage} from "./images.js";
import {ask, errorBox, failed, loading, toast} from "./parts.js";

const LOOK = 1500;  // ms between two looks at a build
const SHOWN = 24;   // images whose answer changes

export function view(root) {
  const list = h("div.models", {"data-test": "models"}, loading()), id = unique("model");
  let timer = null, gone = false;
  const file = h("input", {id, type: "file", accept: ".onnx", required: true, "data-test": "model-file", onchange: () => put(chosen, file.files[0]?.name ?? "")}), chosen = h("span.quiet", {"aria-live": "polite"});
  const send = h("button.main", {type: "submit", "data-test": "model-send"}, icon("upload"), t("models.upload"));
  const form = h("form.card", {onsubmit: event => {
    event.preventDefault();
    busy(send, async () => {
      try {
        const {hash} = await api.upload("models", file.files[0], {name: file.files[0].name.slice(0, 200)});
        form.reset();
        put(chosen);
        await api.post(`models/${hash}/build`);
        toast(t("models.uploaded"));
      } catch (error) {
        failed(error);
      }
      await refresh();
    });
  }}, h("h2", {}, t("models.new")), h("p.quiet", {}, t("models.new.text")), h("div.file", {}, file, h("label.button", {for: id}, icon("models"), t("models.file")), chosen), h("div.buttons", {}, send));
  root.append(list, form);

  async function refresh() {
    clearTimeout(timer);
    try {
      const [{items}, {references}] = await Promise.all([api.get("models"), api.get("")]);
      if (gone) return;
      put(list, items.map(model => card(model, references)));
      if (items.some(model => model.state === "building")) timer = setTimeout(refresh, LOOK);
    } catch (error) {
      put(list, errorBox(error, refresh));
    }
  }

  function card(model, references) {
    const {hash, state} = model, share = references ? Math.min(1, model.references / references) : 1;
    const report = h("div.report", {"aria-live": "polite", "data-test": "report"});
    const act = (name, text, action, main = false) => {
      const button = h(main ? "button.main" : "button", {type: "button", "data-test": name, onclick: () => busy(button, async () => {
        try {
          await action();
        } catch (error) {
          failed(error);
        }
      })}, t(text));
      return button;
    };
    const build = () => api.post(`models/${hash}/build`).then(refresh);
    const activate = async back => {
      if (!await ask(t(back ? "models.back.ask" : "models.activate.ask", {name: model.name}), t("models.activate.text"), t(back ? "models.back" : "models.activate"))) return;
      await api.post(`models/${hash}/activate`);
      toast(t("models.activated", {name: model.name}));
      await refresh();
    };
    const show = async () => put(report, ...reportTable(await api.get(`models/${hash}/report`)));
    const drop = async () => {
      if (!await ask(t("models.remove.ask", {name: model.name}), t("models.remove.text"), t("models.remove"), {bad: true})) return;
      await api.remove(`models/${hash}`);
      await refresh();
    };
    const bar = h("progress", {max: 1, value: share, "aria-label": t("models.progress")});
    return h("article.card.model", {"data-state": state, "data-hash": hash},
      h("header.between", {}, h("h2", {}, model.name), h("span.chip", {class: state}, t(`models.state.${state}`))),
      h("p.quiet", {}, h("code", {}, hash.slice(0, 16)), " · ", when(model.created), " · ", t("models.references", {n: model.references}), model.threshold === null ? "" : ` · ${t("types.threshold", {threshold: score(model.threshold)})}`),
      state === "building" ? h("div.between", {}, bar, h("span.numeral", {}, percent(share, 0))) : null,
      h("div.buttons", {},
        state === "ready" ? act("report-button", "models.report", show) : null,
        state === "ready" ? act("activate", "models.activate", () => activate(false), true) : null,
        state === "retired" ? act("back", "models.back", () => activate(true)) : null,
        state === "building" && share < 1 ? act("build", "models.build", build) : null,
        state !== "active" ? act("remove-model", "models.remove", drop) : null), report);
  }

  refresh();
  return () => { gone = true; clearTimeout(timer); };
}

/** Both models on the same images. */
function reportTable({threshold, references, unknowns, look_alikes: alike, warnings}) {
  const row = (key, from) => h("tr", {}, h("th", {scope: "row"}, t(key)), h("td", {}, from("active")), h("td", {}, from("new")));
  const count = (part, name) => side => number(part[side][name] ?? 0);
  const answer = ({label, score: value}) => label === null ? t("classify.rejected") : `${label} (${score(value)})`;
  const change = one => h("li", {}, one.reference ? referenceImage(one.reference, one.label, 128) : image(`unknowns/${one.id}/image`, "", 128),
    h("div.grow", {}, h("p.tile-name", {}, one.reference ? one.label : t("review.member", {id: one.id})),
      h("p.quiet", {}, t("report.now", {answer: answer(one.active)})), h("p", {}, t("report.then", {answer: answer(one.new)}))));
  const changed = [...references.changed, ...unknowns.changed];
  return [h("table", {}, h("thead", {}, h("tr", {}, h("td"), h("th", {scope: "col"}, t("models.state.active")), h("th", {scope: "col"}, t("report.new")))),
    h("tbody", {}, row("report.threshold", side => score(threshold[side])),
      references.asked ? ["right", "wrong", "rejected"].map(name => row(`report.${name}`, count(references, name))) : null,
      unknowns.asked ? ["labeled", "rejected"].map(name => row(`report.unknown.${name}`, count(unknowns, name))) : null,
      row("report.alike", side => number(alike[side].length)))),
    h("p.quiet", {}, t("report.asked", {references: references.asked, unknowns: unknowns.asked})),
    warnings.map(line => h("p.note.warn", {lang: "en"}, icon("warning"), line)),
    h("p", {}, t("report.changed", {n: changed.length})),
    changed.length ? h("ol.changes", {}, changed.slice(0, SHOWN).map(change)) : null];
}
