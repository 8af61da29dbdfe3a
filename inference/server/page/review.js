/** Review: rejected images that look alike, to be named together. */
import {api} from "./api.js";
import {busy, h, icon, later, put} from "./dom.js";
import {score, t} from "./i18n.js";
import {image} from "./images.js";
import {ask, done, empty, errorBox, failed, findingCards, link, loading, nameField, toast} from "./parts.js";

const SHOWN = 12;   // images of a group before "more"
const GROUPS = 10;  // groups before "more": each asks the server what naming it would do

export function view(root) {
  const list = h("div.clusters", {"data-test": "clusters"}, loading());
  let cards = new Map();  // by the group's images: a group that stays keeps the name that was typed and the choice
  let most = GROUPS;
  root.append(list);

  async function refresh() {
    dispatchEvent(new Event("docmetric:review"));
    try {
      const {clusters} = await api.get("unknowns/clusters");
      cards = new Map(clusters.slice(0, most).map(cluster => [String(cluster.ids), cards.get(String(cluster.ids)) ?? card(cluster)]));
      const more = h("button", {type: "button", "data-test": "more", onclick: () => { most += GROUPS; return busy(more, refresh); }}, t("more.n", {n: clusters.length - most}));
      put(list, clusters.length ? [[...cards.values()], clusters.length > most ? more : null]
                                : empty("review", t("review.empty"), t("review.empty.text"), link("#classify", t("register.try"), "button")));
    } catch (error) {
      put(list, errorBox(error, refresh));
    }
  }

  function card(cluster) {
    const chosen = new Set(cluster.ids);
    const wall = h("div.wall");
    const heading = h("h2"), effect = h("p.resolves", {"aria-live": "polite", "data-test": "effect"});
    const name = nameField({value: "", onname: () => foresee()});
    const save = h("button.main", {type: "submit", "data-test": "name-cluster"}, icon("check"), t("review.name"));
    const dismiss = h("button", {type: "button", "data-test": "dismiss", onclick: () => busy(dismiss, () => resolve({kind: "unknown"}))}, icon("unknown"), t("review.dismiss"));
    const forget = h("button.danger", {type: "button", "data-test": "delete", onclick: () => busy(forget, remove)}, icon("trash"), t("review.delete"));
    const suggested = cluster.suggestion;
    const suggest = suggested ? h("p.quiet", {}, t("review.near"), " ", h("button.link", {type: "button", onclick: () => { name.value = suggested.label; name.input.focus(); }}, suggested.label), ` · ${score(suggested.score)}`) : null;

    function paint(all = false) {
      put(heading, t("review.alike", {n: chosen.size}));
      const order = [cluster.cover, ...cluster.ids.filter(id => id !== cluster.cover)], part = all ? order : order.slice(0, SHOWN);
      put(wall, part.map(id => {
        const box = h("input", {type: "checkbox", checked: chosen.has(id), "aria-label": t("review.member", {id}), onchange: () => {
          if (box.checked) chosen.add(id);
          else chosen.delete(id);
          put(heading, t("review.alike", {n: chosen.size}));
          for (const button of [save, dismiss, forget]) button.disabled = !chosen.size;
          foresee();
        }});
        return h("label.pick", {}, image(`unknowns/${id}/image`, t("review.member", {id})), box);
      }), part.length < order.length ? h("button", {type: "button", onclick: () => paint(true)}, t("review.more", {n: order.length - part.length})) : null);
    }

    const foresee = later(async () => {
      if (save.disabled || !effect.isConnected) return put(effect, "");  // nothing is chosen, or it is being saved
      try {
        const answer = await api.post("unknowns/resolve", {ids: [...chosen], label: name.value || "?", dry_run: true});
        return put(effect, icon("review"), h("span", {}, t("review.resolves", {n: answer.resolved.length}),
          answer.left.length ? ` ${t("review.left", {n: answer.left.length})}` : ""));
      } catch {
        return put(effect, "");  // saving will say what is wrong
      }
    }, 200);

    async function resolve(as) {
      try {
        const {resolved: {length: n}, events} = await api.post("unknowns/resolve", {ids: [...chosen], ...as});
        done(as.label ? t("review.named", {n, label: as.label}) : t("review.dismissed", {n}), events, refresh, t("review.undone"));
        await refresh();
      } catch (error) {
        if (error.details?.findings?.length && !as.force) {
          const content = h("div.findings", {}, findingCards(error.details.findings, null));
          if (await ask(t("register.force"), "", t("register.force"), {content})) await resolve({...as, force: true});
        } else failed(error);
      }
    }

    async function remove() {
      if (!await ask(t("review.delete.ask", {n: chosen.size}), t("review.delete.text"), t("review.delete"), {bad: true})) return;
      try {
        for (const id of chosen) await api.remove(`unknowns/${id}`);
        toast(t("review.deleted", {n: chosen.size}));
      } catch (error) {
        failed(error);
      }
      await refresh();
    }

    paint();
    foresee();  // when the card stands
    return h("article.card.cluster", {"data-size": cluster.size}, h("div.grow", {}, heading, wall),
      h("form", {onsubmit: event => { event.preventDefault(); busy(save, () => resolve({label: name.value})); }}, name.element, suggest, effect,
        h("div.buttons", {}, save), h("div.buttons", {}, dismiss, forget), h("p.hint", {}, t("review.dismiss.why"))));
  }

  refresh();
}
