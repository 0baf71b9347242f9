// Send the form on. The button stays: without this script, or if the EHR does not
// answer, it does the same.
"use strict";

// Not form.submit(): a parameter of that name would stand in its place.
HTMLFormElement.prototype.submit.call(document.getElementById("smart-authorize"));
