// Notices while the tab is hidden that an answer has ended: in the title, in the tab's icon, and as a notification if wanted.

const WANTED = "fireside.notifications"; // in localStorage: "yes" or absent
const ICONS = ["/static/favicon.svg", "/static/answered.svg"];
let title = "Fireside";
let answered = false;

export const notifications = {
  /** False on a page that came over plain http from another computer. */
  get available() {
    return isSecureContext && "Notification" in window;
  },
  get wanted() {
    return this.available && Notification.permission === "granted" && localStorage.getItem(WANTED) === "yes";
  },
  /** Resolves to whether they will be shown: the browser may refuse. */
  async want(wanted) {
    if (wanted) await Notification.requestPermission();
    if (wanted && Notification.permission === "granted") localStorage.setItem(WANTED, "yes");
    else localStorage.removeItem(WANTED);
    return this.wanted;
  },
};

export function setTitle(text) {
  title = text;
  draw();
}

/** An answer has ended in this conversation. */
export function noticeAnswer({ id, title: conversation }) {
  if (!document.hidden) return;
  answered = true;
  draw();
  if (!notifications.wanted) return;
  try {
    const notification = new Notification("Answer finished", { body: conversation, icon: ICONS[0], tag: `fireside-${id}` });
    notification.onclick = () => {
      window.focus();
      location.hash = `#/c/${id}`;
      notification.close();
    };
  } catch {
    // Chrome on Android shows notifications of service workers only.
  }
}

function draw() {
  document.title = answered ? `✓ ${title}` : title;
  document.querySelector("link[rel=icon]").href = ICONS[Number(answered)];
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  answered = false;
  draw();
});
