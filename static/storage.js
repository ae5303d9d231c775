// What this browser keeps, as JSON in localStorage.

/** A value that localStorage has as JSON; `otherwise` if it is absent or damaged. */
export function stored(key, otherwise = null) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}
