/**
 * Images as canvases. An <img> could not send the key of the session, and one of a local file needs blob: addresses, which
 * the page's content security policy does not allow.
 */
import {api} from "./api.js";
import {h} from "./dom.js";

const LARGEST = 1600;  // side of a canvas, pixels; a photo of a phone would take 50 MB
const waiting = new WeakMap();
const watcher = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    waiting.get(target)?.();
    waiting.delete(target);
  }
}, {rootMargin: "300px"});

/** A file's pixels, upright; null where the browser cannot decode it (HEIC, PDF: the server can). */
export async function bitmap(blob) {
  try {
    return await createImageBitmap(blob, {imageOrientation: "from-image"});
  } catch {
    return null;
  }
}

/** Draws pixels on a canvas of at most `side`. */
function draw(canvas, pixels, side = LARGEST) {
  const scale = Math.min(1, side / Math.max(pixels.width, pixels.height));
  canvas.width = Math.max(1, Math.round(pixels.width * scale));
  canvas.height = Math.max(1, Math.round(pixels.height * scale));
  canvas.getContext("2d").drawImage(pixels, 0, 0, canvas.width, canvas.height);
}

/** A canvas with pixels that are there. */
export function shown(pixels, name, side = LARGEST) {
  const canvas = h("canvas.image", {role: "img", "aria-label": name});
  if (pixels) draw(canvas, pixels, side);
  else canvas.classList.add("missing");
  return canvas;
}

/** The size of an image and a small canvas with it, in place of its pixels: twenty photos would take a gigabyte. */
export function preview(pixels, name, side = 640) {
  const {width, height} = pixels, canvas = shown(pixels, name, side);
  pixels.close();
  return {width, height, canvas};
}

/** A canvas with an image of the API, which is asked for when it comes near the screen. */
export function image(path, name, size = 256) {
  const canvas = h("canvas.image", {role: "img", "aria-label": name, width: 4, height: 3});
  waiting.set(canvas, async () => {
    try {
      const pixels = await bitmap(await api.blob(path, {size}));
      if (!pixels) throw new Error();
      draw(canvas, pixels, size);
      pixels.close();
    } catch {
      canvas.classList.add("missing");
    }
  });
  watcher.observe(canvas);
  return canvas;
}

export const referenceImage = (id, name, size) => image(`references/${id}/image`, name, size);
