// The colour scheme is set before the first paint, so this is a plain script in the head.
// Without a choice the page follows the system.
(() => {
  const KEY = "echo-cache-theme";
  const CHOICES = ["auto", "light", "dark"];
  const root = document.documentElement;

  function chosen() {
    try {
      const value = localStorage.getItem(KEY);
      return CHOICES.includes(value) ? value : "auto";
    } catch {
      return "auto"; // storage is forbidden: the choice lives as long as the page
    }
  }

  function apply(theme) {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.setAttribute("aria-label", `Colours: ${theme}. Change`);
      button.title = `Colours: ${theme}`;
    }
  }

  let theme = chosen();
  apply(theme);
  document.addEventListener("DOMContentLoaded", () => {
    apply(theme);
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.addEventListener("click", () => {
        theme = CHOICES[(CHOICES.indexOf(theme) + 1) % CHOICES.length];
        try {
          localStorage.setItem(KEY, theme);
        } catch {
          // see chosen()
        }
        apply(theme);
      });
    }
  });
})();
