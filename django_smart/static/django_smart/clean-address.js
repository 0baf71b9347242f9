// The address of a failed callback holds a code and a state: keep them out of the history.
"use strict";

if (window.location.search) {
  window.history.replaceState(null, "", window.location.pathname);
}
