// A region that scrolls must be reachable by keyboard; a table wider than the page scrolls in its own box.
(function () {
  function wrapTables() {
    document.querySelectorAll(".bd-article table").forEach(function (table) {
      if (table.closest(".pst-scrollable-table-container, .table-scroll")) return;
      var box = document.createElement("div");
      box.className = "table-scroll";
      table.parentNode.insertBefore(box, table);
      box.appendChild(table);
    });
  }
  function markScrollable() {
    var boxes = ".bd-article pre, .table-scroll, .pst-scrollable-table-container, .cell_output .text_html, div.math, mjx-container[display]";
    document.querySelectorAll(boxes).forEach(function (box) {
      if (box.scrollWidth > box.clientWidth + 1) box.setAttribute("tabindex", "0");
      else if (box.matches("pre, .table-scroll")) box.removeAttribute("tabindex");
    });
  }
  function nameToggles() {
    document.querySelectorAll(".bd-sidebar-primary details > summary").forEach(function (toggle) {
      var link = toggle.closest("li").querySelector("a");
      toggle.setAttribute("aria-label", "Pages under " + (link ? link.textContent.trim() : "this page"));
    });
  }
  function useVisibleNames() {
    // The label of a folded cell must not differ from the words on it.
    document.querySelectorAll("summary[aria-label='Toggle hidden content']").forEach(function (fold) { fold.removeAttribute("aria-label"); });
  }
  function dropListRoles() {
    // Sphinx marks a bibliography as a list whose items have a role that is no list item.
    document.querySelectorAll(".citation-list[role], .citation[role]").forEach(function (box) { box.removeAttribute("role"); });
  }
  document.addEventListener("DOMContentLoaded", function () { dropListRoles(); useVisibleNames(); wrapTables(); markScrollable(); nameToggles(); });
  window.addEventListener("load", markScrollable);
  window.addEventListener("resize", markScrollable);
})();
