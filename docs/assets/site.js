// Names and keyboard access that the theme leaves out: the search dialog has a name, and what
// scrolls sideways can be reached by the Tab key.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");

function reachable() {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
