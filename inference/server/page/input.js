/** Where images come from: files, drag and drop, the clipboard, the camera. */
import {busy, h, icon, put, touch} from "./dom.js";
import {t} from "./i18n.js";
import {failed} from "./parts.js";

const KINDS = "image/*,.heic,.heif,.pdf,application/pdf";
const QUALITY = 0.95;  // of the JPEG that a camera's frame becomes
let close = null;      // ends the camera that is open

/** Ends the camera; a view calls it when it is left. */
export function closeCamera() {
  close?.();
}

/** An area that gives `take([File, ...])` what is dropped, chosen, pasted or photographed. */
export function imageInput(take, {compact = false} = {}) {
  const choose = h("input", {type: "file", accept: KINDS, multiple: true, hidden: true, "data-test": "files", onchange: given});
  // Where a page may not use the camera itself (no HTTPS), a phone's own camera takes the photo.
  const capture = h("input", {type: "file", accept: "image/*", capture: "environment", hidden: true, onchange: given});
  const camera = h("div.camera", {hidden: true});
  const open = h("button", {type: "button", "data-test": "camera", onclick: () => busy(open, start)}, icon("camera"), t("input.camera"));
  const area = h("section.drop", {"aria-label": t("input.area"), class: compact ? "compact" : null,
    onkeydown: event => { if (event.key === "Escape") closeCamera(); }},
    compact ? null : h("div.drop-icon", {}, icon("upload")),
    h("p.drop-text", {}, t(touch() ? "input.touch" : "input.drop")),
    h("div.buttons", {}, h("button", {type: "button", class: compact ? null : "main", "data-test": "choose", onclick: () => choose.click()}, icon("upload"), t("input.choose")), open),
    choose, capture, camera);
  area.deliver = deliver;
  function given(event) {
    deliver([...event.target.files]);
    event.target.value = "";  // the same file may be chosen again
  }

  function deliver(files) {
    if (files.length) {
      closeCamera();
      take(files);
    }
  }

  async function start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      put(camera, h("p.note", {}, t("input.insecure")));
      camera.hidden = false;
      capture.click();
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: {facingMode: {ideal: "environment"}, width: {ideal: 1920}, height: {ideal: 1080}}});
    } catch (error) {
      const why = error.name === "NotAllowedError" ? t("input.refused") : error.name === "NotFoundError" ? t("input.none") : t("input.busy");
      put(camera, h("p.note.bad", {role: "alert"}, why));
      camera.hidden = false;
      return;
    }
    if (!area.isConnected) {  // the view was left while the reader was asked
      for (const track of stream.getTracks()) track.stop();
      return;
    }
    const video = h("video", {autoplay: true, playsinline: true, "aria-label": t("input.view")});
    video.muted = true;
    video.srcObject = stream;
    const shoot = h("button.main", {type: "button", "data-test": "shoot", disabled: true, onclick: () => busy(shoot, photograph)}, icon("camera"), t("input.shoot"));
    video.addEventListener("loadeddata", () => { shoot.disabled = false; shoot.focus(); }, {once: true});
    put(camera, video, h("div.buttons", {}, shoot, h("button", {type: "button", onclick: closeCamera}, t("input.stop"))));
    camera.hidden = false;
    area.classList.add("live");
    closeCamera();
    close = () => {
      for (const track of stream.getTracks()) track.stop();
      put(camera);
      camera.hidden = true;
      area.classList.remove("live");
      close = null;
      if (open.isConnected) open.focus();
    };

    async function photograph() {
      const canvas = h("canvas", {width: video.videoWidth, height: video.videoHeight});
      canvas.getContext("2d").drawImage(video, 0, 0);
      const blob = await new Promise(done => canvas.toBlob(done, "image/jpeg", QUALITY));
      if (!blob) return failed(new Error(t("input.busy")));
      return deliver([new File([blob], t("input.photo"), {type: "image/jpeg"})]);
    }
  }

  return area;
}

/** The area that takes what is pasted or dropped; none while a question waits for its answer. */
const target = () => document.querySelector("dialog") ? null : document.querySelector(".drop");

addEventListener("pagehide", closeCamera);
addEventListener("paste", event => {
  const files = [...event.clipboardData?.files ?? []].filter(file => /^image\/|\/pdf$/.test(file.type)), area = target();
  if (!files.length || !area) return;
  event.preventDefault();
  area.deliver(files);
});
// Files may be dropped anywhere: one that missed the area would be opened in place of the page.
addEventListener("dragover", event => {
  if (!event.dataTransfer.types.includes("Files")) return;  // text may be dragged into a field
  event.preventDefault();
  const area = target();
  if (area) area.classList.add("over");
  else event.dataTransfer.dropEffect = "none";
});
addEventListener("dragleave", event => { if (!event.relatedTarget) target()?.classList.remove("over"); });
addEventListener("drop", event => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const area = target();
  area?.classList.remove("over");
  area?.deliver([...event.dataTransfer.files]);
});
