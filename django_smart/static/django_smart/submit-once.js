// Ignore a second click while the first is being answered. Browsers drop the cookies of
// the first answer then, and the person would be signed out. After ten seconds, a click
// is another try, as after the browser's Stop button.
"use strict";

let sent = false;

document.addEventListener("submit", (event) => {
  if (sent) {
    event.preventDefault();
  }
  if (!event.defaultPrevented) {
    sent = true;
    setTimeout(() => {
      sent = false;
    }, 10000);
  }
});

// Also when the page is shown again by the back button.
window.addEventListener("pageshow", () => {
  sent = false;
});
