// Events: what one part of the page tells the others, and how often.

/** An object that others listen to. */
export class Emitter {
  #target = new EventTarget();

  emit(kind, detail = {}) {
    this.#target.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  /** Returns a function that removes the listener. */
  on(kind, listener) {
    const handle = (event) => listener(event.detail);
    this.#target.addEventListener(kind, handle);
    return () => this.#target.removeEventListener(kind, handle);
  }
}

/*
 * The page's events. `broadcast` sends the first six to all tabs, to the others with `elsewhere: true`.
 *
 * list          {id, ids}     conversations in the list changed; neither: any, or the folders
 * conversation  {id}          messages or settings of a conversation changed
 * bin           {id, home}    a conversation left the bin; `home` is the conversation that a single message returned to
 * library                     prompts or presets changed
 * session                     a user signed in or out
 * account       {user}        the user's name changed
 * models                      the models, their states or the chosen model changed
 * library-read                `library` was read again
 * preferences                 a setting of this browser changed
 * listed        conversation  the open conversation, as the list was just read
 * offline, online             the server can no longer be reached; it can again
 * signed-out                  the session has ended
 */
const page = new Emitter();
const tabs = new BroadcastChannel("fireside");

tabs.onmessage = ({ data }) => page.emit(data.kind, { ...data.detail, elsewhere: true });

export const emit = (kind, detail) => page.emit(kind, detail);
export const on = (kind, listener) => page.on(kind, listener);

export function broadcast(kind, detail = {}) {
  page.emit(kind, detail);
  tabs.postMessage({ kind, detail });
}

/** Returns a function that calls `act` once, `wait` ms after its last call. */
export function debounce(wait, act) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(act, wait, ...values);
  };
}
