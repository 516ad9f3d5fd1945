// Runs before the page is drawn (no module): the colours and the language chosen last time, so that nothing flickers.
(function () {
  try {
    var theme = JSON.parse(localStorage.getItem("twllm.theme"));
    if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
    if (JSON.parse(localStorage.getItem("twllm.language")) === "en") document.documentElement.lang = "en";
  } catch (error) { /* storage is off: follow the system */ }
})();
