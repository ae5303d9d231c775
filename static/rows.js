// Buttons in the lists of the settings.

import { toast } from "./popups.js";

/**
 * A click listener that runs `act` after `ask` resolved to true, and then draws `place` again by `draw(place)`. The button is
 * disabled meanwhile. An error is shown. The focus goes to the button that is then in the same position.
 */
export const action = (act, { ask = () => true, place = null, draw = null } = {}) => async ({ currentTarget: pressed }) => {
  if (!await ask()) return;
  const buttons = () => [...(place?.querySelectorAll("button") ?? [])];
  const index = buttons().indexOf(pressed);
  pressed.disabled = true;
  for (const step of [act, draw]) {
    try {
      await step?.(place);
    } catch (error) {
      toast(error.message);
    }
  }
  pressed.disabled = false;
  if (index >= 0) (buttons()[Math.min(index, buttons().length - 1)] ?? place.closest("[role=tabpanel]"))?.focus();
};
