"use strict";
// The token comes behind the # of the address, which browsers do not send.
watchScreen([location.hash.slice(1)], (why, name) => {
  document.title = why ? "No signal – " + name : name;
});
// Another token: whoever pastes the new address into the same page.
addEventListener("hashchange", () => location.reload());
