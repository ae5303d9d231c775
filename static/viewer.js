// An image in large, with the other images of its message a key, a click or a swipe away.

import { openDialog } from "./dialogs.js";
import { h } from "./dom.js";
import { iconButton } from "./icons.js";

const SWIPE_PIXELS = 50;

/** Show `images`, as {name, source, id, node}, beginning with one. At the end the focus returns to the node of the one that was shown last. */
export function openViewer(images, index) {
  if (document.querySelector("dialog.viewer")) return; // the second click of a double click
  const image = h("img", {});
  const show = (to) => {
    if (!(to in images)) return;
    index = to;
    image.src = images[index].source;
    image.alt = images[index].name;
    title.textContent = images.length > 1 ? `Image ${index + 1} of ${images.length}` : "Image";
    original.href = images[index].source;
    previous.disabled = index === 0;
    next.disabled = index === images.length - 1;
  };
  const step = (name, label, by) => iconButton(name, label, () => show(index + by), { hidden: images.length < 2 });
  const previous = step("left", "Previous image", -1);
  const next = step("right", "Next image", 1);
  const original = h("a", { target: "_blank" }, "Open in a tab");
  let touched = 0;
  const figure = h("figure", {
    ontouchstart: ({ touches }) => { touched = touches.length === 1 ? touches[0].clientX : NaN; },
    ontouchend: ({ changedTouches }) => {
      const moved = changedTouches[0].clientX - touched;
      if (Math.abs(moved) > SWIPE_PIXELS && visualViewport.scale === 1) show(index - Math.sign(moved));
    },
  }, image);
  const dialog = openDialog("Image", { className: "viewer", onclose: () => images[index].node.focus() },
    figure, h("footer", {}, previous, original, next));
  const title = dialog.querySelector("h2");
  title.setAttribute("aria-live", "polite");
  dialog.addEventListener("keydown", ({ key }) => {
    const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: images.length - 1 }[key];
    if (to !== undefined) show(to);
  });
  show(index);
}
