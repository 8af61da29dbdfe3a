/**
 * An image with the document's corners on it. They move by mouse, touch and arrow keys (Shift: ten times as far).
 * A quad is four [x, y] in pixels of the upright image, clockwise, as everywhere in DocMetric.
 */
import {h, put, svg} from "./dom.js";
import {t} from "./i18n.js";
import {shown} from "./images.js";

const STEP = 1 / 400;  // of the longer side: what an arrow key moves
const BEYOND = 0.25;   // so far out of the image a corner may lie, share of its sides
const LOUPE = 128, ZOOM = 3;

/** `onchange(quad)` is called when a corner was moved by the reader; `show(quad)` sets it from outside (null: none). */
export function stage(pixels, name, onchange) {
  const {width, height} = pixels;
  const canvas = shown(pixels, name);
  const outline = svg("path.outline"), shade = svg("path.shade", {"fill-rule": "evenodd"});
  const over = svg("svg.over", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true"}, shade, outline);
  const loupe = h("canvas.loupe", {width: LOUPE, height: LOUPE, "aria-hidden": "true", hidden: true});
  const spoken = h("p.only-spoken", {"aria-live": "polite"});
  const corners = [0, 1, 2, 3].map(i => h("button.corner", {
    type: "button", onpointerdown: event => grab(event, i), onkeydown: event => step(event, i),
    onfocus: () => magnify(i), onblur: () => { loupe.hidden = true; },
  }));
  const frame = h("div.frame", {}, canvas, over, ...corners, loupe);
  const element = h("div.stage", {}, frame, spoken);
  let quad = null;

  // The frame has the image's own shape, so that percentages of it are places in the image.
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.style.setProperty("--shape", width / height);

  function paint() {
    over.toggleAttribute("hidden", !quad);
    corners.forEach((corner, i) => {
      corner.hidden = !quad;
      if (!quad) return;
      const [x, y] = quad[i];
      corner.style.left = `${100 * clamp(x / width, 0, 1)}%`;
      corner.style.top = `${100 * clamp(y / height, 0, 1)}%`;
      corner.setAttribute("aria-label", t("stage.corner", {i: i + 1, x: Math.round(x), y: Math.round(y)}));
    });
    if (!quad) return;
    const path = `M${quad.map(([x, y]) => `${x} ${y}`).join("L")}Z`;
    outline.setAttribute("d", path);
    shade.setAttribute("d", `M${-width} ${-height}h${3 * width}v${3 * height}h${-3 * width}Z${path}`);
  }

  function move(i, x, y) {
    quad = quad.map((corner, j) => j === i
      ? [clamp(x, -BEYOND * width, (1 + BEYOND) * width), clamp(y, -BEYOND * height, (1 + BEYOND) * height)] : corner);
    paint();
    magnify(i);
  }

  function grab(event, i) {
    if (event.button) return;
    event.preventDefault();
    const button = corners[i], box = frame.getBoundingClientRect();
    const [x, y] = quad[i];
    const from = [event.clientX - clamp(x / width, 0, 1) * box.width, event.clientY - clamp(y / height, 0, 1) * box.height];
    let moved = false;
    button.setPointerCapture(event.pointerId);
    button.focus({preventScroll: true});
    const drag = moving => {
      moved = true;
      move(i, (moving.clientX - from[0]) / box.width * width, (moving.clientY - from[1]) / box.height * height);
    };
    const end = () => {
      button.removeEventListener("pointermove", drag);
      loupe.hidden = true;
      if (moved) onchange(quad);
    };
    button.addEventListener("pointermove", drag);
    button.addEventListener("lostpointercapture", end, {once: true});
  }

  function step(event, i) {
    const by = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!by) return;
    event.preventDefault();
    const far = Math.max(1, Math.round(STEP * Math.max(width, height))) * (event.shiftKey ? 10 : 1);
    move(i, quad[i][0] + far * by[0], quad[i][1] + far * by[1]);
    put(spoken, t("stage.moved", {x: Math.round(quad[i][0]), y: Math.round(quad[i][1])}));
    onchange(quad);
  }

  /** What lies under the finger, beside it. */
  function magnify(i) {
    if (!quad) return;
    const [x, y] = quad[i], context = loupe.getContext("2d");
    const shownScale = frame.clientWidth / width, side = LOUPE / (ZOOM * shownScale || 1);
    loupe.hidden = false;
    loupe.classList.toggle("at-right", x < width / 2);
    context.clearRect(0, 0, LOUPE, LOUPE);
    context.drawImage(pixels, x - side / 2, y - side / 2, side, side, 0, 0, LOUPE, LOUPE);
    context.strokeStyle = getComputedStyle(frame).getPropertyValue("--accent");
    context.lineWidth = 2;
    context.beginPath();
    for (const neighbor of [quad[(i + 3) % 4], quad[(i + 1) % 4]]) {
      context.moveTo(LOUPE / 2, LOUPE / 2);
      context.lineTo(LOUPE / 2 + (neighbor[0] - x) / side * LOUPE, LOUPE / 2 + (neighbor[1] - y) / side * LOUPE);
    }
    context.stroke();
  }

  paint();
  return {element, width, height, show(next) { quad = next; paint(); }};
}

/** A small image (of `preview`) with its outline, not to be moved. */
export function outlined({width, height, canvas}, quad) {
  const frame = h("div.frame.small", {}, canvas);
  frame.style.setProperty("--shape", width / height);
  if (!quad) return frame;
  const over = svg("svg.over", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true"},
                   svg("path.outline", {d: `M${quad.map(corner => corner.join(" ")).join("L")}Z`}));
  frame.append(over);
  return frame;
}

export const whole = ({width, height}) => [[0, 0], [width, 0], [width, height], [0, height]];

const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
