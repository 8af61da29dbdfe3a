/** Elements without a framework. Nothing here writes HTML from text: labels and messages are always text nodes. */

/**
 * h("button.main", {type: "button", onclick}, "Save"): an element with its classes, attributes and children.
 * A property that begins with "on" is a listener; true and false set and drop an attribute; null is no attribute.
 */
export function h(name, properties = {}, ...children) {
  return fill(document.createElement(name.split(".")[0]), name, properties, children);
}

/** The same for SVG. */
export function svg(name, properties = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name.split(".")[0]), name, properties, children);
}

function fill(element, name, properties, children) {
  const classes = name.split(".").slice(1);
  if (classes.length) element.classList.add(...classes);
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.classList.add(value);
    else if (key === "value") element.value = value;
    else if (typeof value === "boolean" && !key.startsWith("aria-")) element.toggleAttribute(key, value);
    else element.setAttribute(key, value);
  }
  return put(element, children);
}

/** Replaces what is in `element`; null, undefined and false are nothing. */
export function put(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

/** Whether the reader points with a finger: nothing is dropped then, and a focused field brings up a keyboard. */
export const touch = () => matchMedia("(pointer: coarse)").matches;

let last = 0;
/** An id that no other element has. */
export const unique = prefix => `${prefix}-${++last}`;

/** Calls `action` when no further call came for `wait` ms. */
export function later(action, wait) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
}

/**
 * Makes buttons do one thing at a time: `button` is disabled and says so while `action` runs. Where the focus was lost with
 * what the action replaced, it goes to what still stands around that place, so that the Tab key goes on from there.
 */
export async function busy(button, action) {
  if (button.disabled) return undefined;
  const places = [];
  for (let place = document.activeElement; place && place !== document.body; place = place.parentElement) places.push(place);
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    return await action();
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
    const place = places.find(one => one.isConnected);
    if (place && document.activeElement === document.body) {
      if (place !== places[0]) place.tabIndex = -1;
      place.focus({preventScroll: true});
    }
  }
}

/** Strokes on a 24 x 24 grid. */
const STROKES = {
  register: "M12 5v14M5 12h14",
  classify: "M4 8V5a1 1 0 0 1 1-1h3M16 4h3a1 1 0 0 1 1 1v3M20 16v3a1 1 0 0 1-1 1h-3M8 20H5a1 1 0 0 1-1-1v-3M8 12l3 3 5-6",
  review: "M9 4h10a1 1 0 0 1 1 1v10M6 8h9a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1H6a1 1 0 0 1-1-1V9a1 1 0 0 1 1-1zM9.3 12.6a1.4 1.4 0 1 1 1.9 1.3c-.4.2-.7.5-.7 1M10.5 17v.1",
  types: "M4 5h7v6H4zM13 5h7v6h-7zM4 13h7v6H4zM13 13h7v6h-7z",
  threshold: "M4 8h9M17 8h3M15 6v4M4 16h3M11 16h9M9 14v4",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  history: "M4 12a8 8 0 1 0 2.6-5.9L4 8.5M4 4v4.5h4.5M12 8v4.5l3 2",
  camera: "M4 8h3l1.5-2.5h7L17 8h3a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V9a1 1 0 0 1 1-1zM12 16.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7z",
  upload: "M12 16V5M8 9l4-4 4 4M5 15v3a1 1 0 0 0 1 1h12a1 1 0 0 0 1-1v-3",
  warning: "M12 4l9 15.5H3zM12 10v4.5M12 17v.1",
  check: "M5 12.5l4.5 4.5L19 7.5",
  cross: "M6 6l12 12M18 6L6 18",
  unknown: "M9 9a3 3 0 1 1 4.2 2.8c-.8.4-1.2 1-1.2 1.9v.3M12 17.5v.1",
  undo: "M9 14L4 9l5-5M4 9h10a5.5 5.5 0 0 1 0 11h-3",
  back: "M15 5l-7 7 7 7",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM16 16l4.5 4.5",
  language: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM3.5 9.5h17M3.5 14.5h17M12 3c-5 5-5 13 0 18M12 3c5 5 5 13 0 18",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7M10 10.5v6M14 10.5v6",
  add: "M12 5v14M5 12h14",
};

/** A decoration: screen readers skip it, so the element around it needs a name of its own. */
export function icon(name) {
  return svg("svg.icon", {viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false"}, svg("path", {d: STROKES[name]}));
}
