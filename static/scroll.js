// The scroll of a conversation: it keeps the end in sight while it is in sight, and never moves for who reads further up.

import { h, icon } from "./dom.js";

export class Scroller {
  #following = true;
  #at = 0;
  #height = 0; // of the content, at the last look
  #finger = Infinity; // where it was

  constructor(column) {
    this.node = h("section", { class: "scroller", "aria-label": "Messages", tabindex: "0" }, column);
    this.button = h("button", {
      type: "button", class: "to-end", hidden: true, "aria-label": "To the end", title: "To the end", onclick: () => this.toEnd(),
    }, icon("bottom"));
    this.node.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.node.addEventListener("wheel", (event) => event.deltaY < 0 && this.#up(), { passive: true });
    this.node.addEventListener("touchmove", (event) => this.#touched(event), { passive: true });
    this.node.addEventListener("touchstart", () => { this.#finger = Infinity; }, { passive: true });
    this.node.addEventListener("keydown", (event) => isUp(event) && this.#up());
    this.node.addEventListener("pointerdown", (event) => event.target === this.node && event.offsetX >= this.node.clientWidth && this.#up()); // the bar
    const sizes = new ResizeObserver(() => this.#resized());
    sizes.observe(column);
    sizes.observe(this.node);
  }

  toEnd() {
    this.#following = true;
    this.#resized();
  }

  /** Stays where it is, whatever comes. */
  hold() {
    this.#following = false;
  }

  /** What lies in sight stays there while `change` adds something above. */
  keeping(change) {
    const below = this.node.scrollHeight - this.node.scrollTop;
    this.node.style.overflowAnchor = "none";
    change();
    this.node.scrollTop = this.node.scrollHeight - below;
    this.node.style.overflowAnchor = "";
  }

  #up() {
    if (this.node.scrollTop > 0) this.#following = false;
  }

  #touched({ touches: [{ clientY }] }) {
    if (clientY > this.#finger) this.#up();
    this.#finger = clientY;
  }

  /** Also a search of the browser's or the focus may go up. While the content changes, it may be the browser that does. */
  #scrolled() {
    const { scrollTop, scrollHeight } = this.node;
    if (scrollTop < this.#at - 1 && scrollHeight === this.#height) this.#following = false;
    else if (scrollTop > this.#at && this.#rest() < 24) this.#following = true;
    this.#at = scrollTop;
    this.#height = scrollHeight;
    this.#drawButton();
  }

  #resized() {
    if (this.#following) this.node.scrollTop = this.node.scrollHeight;
    this.#at = this.node.scrollTop;
    this.#height = this.node.scrollHeight;
    this.#drawButton();
  }

  #drawButton() {
    this.button.hidden = this.#following || this.#rest() < 80;
  }

  #rest() {
    return this.node.scrollHeight - this.node.clientHeight - this.node.scrollTop;
  }
}

function isUp({ key, shiftKey, target }) {
  return (["ArrowUp", "PageUp", "Home"].includes(key) || (key === " " && shiftKey)) && !target.closest("textarea");
}
