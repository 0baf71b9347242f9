// Search while somebody types. Without scripts the form's button does the same.
"use strict";

const form = document.getElementById("smart-search");
const input = document.getElementById("smart-query");
let waiting = 0;
let running = null;

async function search() {
  running?.abort();
  const mine = running = new AbortController();
  const address = `${form.getAttribute("action")}?${new URLSearchParams(new FormData(form))}`;
  try {
    const answer = await fetch(address, { signal: mine.signal, credentials: "same-origin" });
    if (!answer.ok) {
      return; // What is shown stays; the button tells what is wrong.
    }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (mine !== running) {
      return; // A later search has begun meanwhile.
    }
    for (const id of ["smart-results", "smart-status"]) {
      const found = page.getElementById(id);
      if (found) {
        document.getElementById(id).replaceChildren(...found.childNodes);
      }
    }
    window.history.replaceState(null, "", address);
  } catch (error) {
    if (error.name !== "AbortError") {
      throw error;
    }
  }
}

input.addEventListener("input", () => {
  window.clearTimeout(waiting);
  waiting = window.setTimeout(search, 200);
});
