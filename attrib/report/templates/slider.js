(() => {
  const slider = document.getElementById("layer");
  const show = () => {
    for (const one of document.querySelectorAll("[data-step]")) {
      one.hidden = one.dataset.step !== slider.value;
    }
    slider.setAttribute("aria-valuetext", document.querySelector(".layer-name:not([hidden])").textContent);
  };
  slider.addEventListener("input", show);
  document.getElementById("slider").hidden = false;
  show();
})();
