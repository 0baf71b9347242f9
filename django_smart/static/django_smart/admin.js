// The admin: buttons that copy an address for the vendor's form, and what is wrong with a
// registration while it is typed. Without scripts the buttons stay hidden, and the form
// tells when it is sent.
"use strict";

function offerCopies() {
  if (!navigator.clipboard) {
    return; // Not a secure context: the address can be selected with one click.
  }
  for (const button of document.querySelectorAll(".smart-copy-button")) {
    const label = button.textContent;
    button.hidden = false;
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", async () => {
      const value = button.parentElement.querySelector(".smart-copy-value");
      await navigator.clipboard.writeText(value.textContent);
      button.textContent = button.dataset.done;
      window.setTimeout(() => { button.textContent = label; }, 2000);
    });
  }
}

function checkWhileTyping(url) {
  const form = document.getElementById("smart-check").closest("form");
  let timer = 0;
  let turn = 0;

  function show(name, messages) {
    const field = form.elements[name];
    const id = `smart-live-${name}`;
    let box = document.getElementById(id);
    if (!box) {
      if (!messages.length) {
        return;
      }
      box = document.createElement("div");
      box.id = id;
      box.className = "smart-live";
      box.setAttribute("role", "status");
      const place = field ? field.closest(".form-row") : document.getElementById("smart-check");
      place.append(box);
      if (field) {
        field.setAttribute("aria-describedby", `${field.getAttribute("aria-describedby") || ""} ${id}`.trim());
      }
    }
    box.replaceChildren(...messages.map((text) => {
      const line = document.createElement("p");
      line.textContent = text;
      return line;
    }));
    if (field) {
      field.setAttribute("aria-invalid", String(messages.length > 0));
    }
  }

  async function check() {
    const mine = ++turn;
    const data = new FormData(form);
    data.delete("client_secret"); // is sent once, with the form itself
    let errors;
    try {
      const response = await fetch(url, { method: "POST", body: data, credentials: "same-origin" });
      if (!response.ok) {
        return;
      }
      errors = (await response.json()).errors;
    } catch {
      return; // The form still tells when it is sent.
    }
    if (mine !== turn) {
      return; // Somebody typed on.
    }
    document.getElementById("smart-check").hidden = !errors.__all__;
    const shown = [...form.querySelectorAll(".smart-live")].map((box) => box.id.slice(11));
    for (const name of new Set([...shown, ...Object.keys(errors)])) {
      show(name, errors[name] || []);
    }
  }

  form.addEventListener("input", () => {
    window.clearTimeout(timer);
    timer = window.setTimeout(check, 400);
  });
  form.addEventListener("change", check);
}

document.addEventListener("DOMContentLoaded", () => {
  offerCopies();
  const place = document.getElementById("smart-check");
  if (place) {
    checkWhileTyping(place.dataset.url);
  }
});
