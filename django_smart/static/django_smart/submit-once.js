// Ignore a second click while the first is being answered. Browsers drop the cookies of
// the first answer then, and the person would be signed out.
"use strict";

let sent = false;

document.addEventListener("submit", (event) => {
  if (sent) {
    event.preventDefault();
  }
  sent ||= !event.defaultPrevented;
});

// Also when the page is shown again by the back button.
window.addEventListener("pageshow", () => {
  sent = false;
});
