// What is seldom done to folders: naming, deleting, and choosing the one to move conversations to.

import { openForm } from "./dialogs.js";
import { h } from "./dom.js";
import { counted } from "./format.js";
import { openMenu, toast } from "./popups.js";

const MAX_NAME = 100;

/** Ask for a name. Resolves to it, or null. */
async function askName(title, verb, name = "") {
  const input = h("input", { value: name, maxlength: MAX_NAME, required: true, "aria-label": "Name", autocomplete: "off", onfocus: () => input.select() });
  return await openForm(title, { verb }, [input], () => {}) ? input.value.trim() || null : null;
}

/** Resolves to the new folder, or null. */
export async function addFolder(list) {
  const name = await askName("New folder", "Create");
  return name && list.addFolder(name);
}

export async function renameFolder(list, { id, name }) {
  const renamed = await askName("Rename the folder", "Rename", name);
  if (renamed && renamed !== name) await list.renameFolder(id, renamed);
}

/** Delete a folder. Its conversations stay; undoing it moves them back. */
export async function deleteFolder(list, { id, name }) {
  const ids = await list.deleteFolder(id);
  if (!ids) return;
  const stay = ids.length ? ` ${counted(ids.length, "chat")} ${ids.length === 1 ? "stays" : "stay"} in the list.` : "";
  toast(`Deleted the folder “${name}”.${stay}`, "Undo", async () => {
    const folder = await list.addFolder(name);
    if (folder && ids.length) await list.changeMany(ids, "move", folder.id);
  });
}

/** Open a menu of the folders beside `anchor`, and move these conversations. `moved` is called when that worked. */
export function chooseFolder(list, anchor, ids, moved = () => {}) {
  const move = async (folder) => {
    const changed = await list.changeMany(ids, "move", folder?.id ?? null);
    if (!changed) return;
    moved();
    toast(`Moved ${counted(changed.length, "chat")} ${folder ? `to “${folder.name}”` : "out of the folder"}.`);
  };
  const current = new Set(ids.map((id) => list.get(id)?.folder_id ?? null));
  const isElsewhere = (id) => current.size > 1 || !current.has(id);
  openMenu(anchor, [
    ...list.folders.filter(({ id }) => isElsewhere(id)).map((folder) => ({ icon: "folder", label: folder.name, act: () => move(folder) })),
    ...(isElsewhere(null) ? [{ icon: "close", label: "No folder", act: () => move(null) }] : []),
    {
      icon: "addFolder", label: "New folder", act: async () => {
        const folder = await addFolder(list);
        if (folder) await move(folder);
      },
    },
  ]);
}
