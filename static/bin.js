// Settings: the deleted conversations and messages.

import { get, post, remove } from "./api.js";
import { confirm } from "./dialogs.js";
import { button, h } from "./dom.js";
import { broadcast } from "./events.js";
import { counted, timeNode } from "./format.js";
import { icon, iconButton } from "./icons.js";
import { action } from "./rows.js";

const KEPT = "Deleted chats and messages stay here for 30 days.";

export async function show(place) {
  const deleted = await get("/conversations?deleted=true");
  if (!deleted.length) return place.replaceChildren(h("p", { class: "faint" }, `The bin is empty. ${KEPT}`));
  const messages = deleted.filter(isMessage).length;
  const words = messages === deleted.length ? ["message"] : messages ? ["entry", "entries"] : ["chat"];
  const all = deleted.length === 1 ? `One ${words[0]}` : `All ${counted(deleted.length, ...words)} in it`;
  const empty = action(() => emptyBin(deleted), {
    place, draw: show, ask: () => confirm("Empty the bin?", `${all} cannot be restored after this.`, "Empty it"),
  });
  place.replaceChildren(
    h("div", { class: "row" }, h("p", { class: "faint" }, KEPT), button([icon("trash"), "Empty the bin"], empty, { class: "danger" })),
    h("ul", { class: "rows" }, deleted.map((one) => row(one, place))));
}

const isMessage = ({ deleted_from: home }) => home !== undefined;

function row(one, place) {
  const restore = async () => {
    await post(`/conversations/${one.id}/restore`);
    broadcast("list", { id: one.deleted_from?.id ?? one.id });
    broadcast("bin", { id: one.id, home: one.deleted_from?.id });
  };
  const ask = () => confirm("Delete for good?", `“${one.title}” cannot be restored after this.`, "Delete");
  return h("li", {},
    h("span", {}, h("strong", {}, one.title), h("small", {}, one.deleted_from ? `From “${one.deleted_from.title}”, deleted ` : "Deleted ", timeNode(one.deleted_at))),
    iconButton("restore", `Restore ${one.title}`, action(restore, { place, draw: show })),
    iconButton("trash", `Delete ${one.title} for good`, action(() => purge(one), { place, draw: show, ask })));
}

async function purge({ id }) {
  await remove(`/conversations/${id}?purge=true`);
  broadcast("bin", { id });
}

/** Purge the listed conversations that are still in the bin: another device may have restored some. */
async function emptyBin(listed) {
  const current = new Set((await get("/conversations?deleted=true")).map(({ id }) => id));
  for (const one of [...listed.filter(isMessage), ...listed]) { // a chat takes its messages along
    if (current.delete(one.id)) await purge(one);
    else broadcast("bin", { id: one.id });
  }
}
