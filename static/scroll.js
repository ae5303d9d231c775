// The scroll position of a conversation: follows the end while it is visible, and stays where the reader scrolled up.

import { h } from "./dom.js";
import { icon } from "./icons.js";

export class Scroller {
  #following = true;
  #top = 0; // the scroll position and the height of the content, as seen last
  #height = 0;
  #touchY = Infinity;

  constructor(column) {
    this.node = h("section", { class: "scroller", "aria-label": "Messages", tabindex: "0" }, column);
    this.button = h("button", {
      type: "button", class: "to-end", hidden: true, "aria-label": "To the end", title: "To the end", onclick: () => this.toEnd(),
    }, icon("bottom"));
    this.node.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.node.addEventListener("wheel", (event) => event.deltaY < 0 && this.#scrollUp(), { passive: true });
    this.node.addEventListener("touchmove", (event) => this.#touched(event), { passive: true });
    this.node.addEventListener("touchstart", () => { this.#touchY = Infinity; }, { passive: true });
    this.node.addEventListener("keydown", (event) => scrollsUp(event) && this.#scrollUp());
    this.node.addEventListener("pointerdown", (event) => event.target === this.node && event.offsetX >= this.node.clientWidth && this.#scrollUp()); // on the scroll bar
    const sizes = new ResizeObserver(() => this.#resized());
    sizes.observe(column);
    sizes.observe(this.node);
  }

  toEnd() {
    this.#following = true;
    this.#resized();
  }

  toStart() {
    this.hold();
    this.node.scrollTop = 0;
  }

  /** Follow the end no longer. */
  hold() {
    this.#following = false;
  }

  /** Keep the visible messages in place while `change` adds some above. */
  keepPlace(change) {
    const below = this.node.scrollHeight - this.node.scrollTop;
    this.node.style.overflowAnchor = "none";
    change();
    this.node.scrollTop = this.node.scrollHeight - below;
    this.node.style.overflowAnchor = "";
  }

  #scrollUp() {
    if (this.node.scrollTop > 0) this.#following = false;
  }

  #touched({ touches: [{ clientY }] }) {
    if (clientY > this.#touchY) this.#scrollUp();
    this.#touchY = clientY;
  }

  /** Moving up at an unchanged height is the reader, or the browser's search or focus; otherwise it is the layout. */
  #scrolled() {
    const { scrollTop, scrollHeight } = this.node;
    if (scrollTop < this.#top - 1 && scrollHeight === this.#height) this.#following = false;
    else if (scrollTop > this.#top && this.#below() < 24) this.#following = true;
    this.#top = scrollTop;
    this.#height = scrollHeight;
    this.#drawButton();
  }

  #resized() {
    if (this.#following) this.node.scrollTop = this.node.scrollHeight;
    this.#top = this.node.scrollTop;
    this.#height = this.node.scrollHeight;
    this.#drawButton();
  }

  #drawButton() {
    this.button.hidden = this.#following || this.#below() < 80;
  }

  #below() {
    return this.node.scrollHeight - this.node.clientHeight - this.node.scrollTop;
  }
}

function scrollsUp({ key, shiftKey, target }) {
  return (["ArrowUp", "PageUp", "Home"].includes(key) || (key === " " && shiftKey)) && !target.closest("textarea");
}
