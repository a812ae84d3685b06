// A table that is wider than the page scrolls; who has no mouse has to get there by keyboard.
document$.subscribe(() => {
  for (const frame of document.querySelectorAll(".md-typeset__scrollwrap")) {
    frame.tabIndex = 0;
  }
});
