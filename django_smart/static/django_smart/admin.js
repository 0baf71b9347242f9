// The admin: buttons that copy a URL for the EHR's form, and the fields of a registration that
// its authentication method needs. Without scripts the buttons stay hidden and every field is
// shown.
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

function showByMethod() {
  const method = document.getElementById("id_token_endpoint_auth_method");
  const source = document.getElementById("id_secret_source");
  if (!method || !source) {
    return;
  }
  function show(name, isNeeded) {
    const row = document.querySelector(`.form-row.field-${name}`);
    row?.classList.toggle("hidden", !isNeeded && !row.classList.contains("errors"));
  }
  function update() {
    const needsSecret = method.value.startsWith("client_secret_");
    show("secret_source", needsSecret);
    for (const { value } of source.options) {
      show(value, needsSecret && value === source.value);
    }
    show("signing_algorithm", method.value === "private_key_jwt");
  }
  method.addEventListener("change", update);
  source.addEventListener("change", update);
  update();
}

document.addEventListener("DOMContentLoaded", () => {
  offerCopies();
  showByMethod();
});
