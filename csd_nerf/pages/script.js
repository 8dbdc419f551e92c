"use strict";
const compare = document.querySelector(".compare"), range = compare.querySelector("input");
function split(percent) {
  range.value = percent;
  compare.style.setProperty("--split", range.value + "%");
}
function follow(event) {
  const box = compare.getBoundingClientRect();
  split(100 * (event.clientX - box.left) / box.width);
}
range.addEventListener("input", () => split(range.value));
compare.addEventListener("pointerdown", (event) => {
  compare.setPointerCapture(event.pointerId);
  range.focus({ preventScroll: true });
  follow(event);
});
compare.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });

// Two clips drift apart in time.
const [leading, led] = compare.querySelectorAll("video");
if (led) {
  leading.addEventListener("timeupdate", () => {
    if (Math.abs(led.currentTime - leading.currentTime) > 0.1) led.currentTime = leading.currentTime;
  });
}

const views = document.querySelectorAll(".views button");
for (const view of views) {
  view.addEventListener("click", () => {
    for (const other of views) other.setAttribute("aria-pressed", other === view);
    compare.querySelector(".before").src = view.dataset.before;
    compare.querySelector(".after").src = view.querySelector("img").src;
  });
}
for (const button of document.querySelectorAll(".command button")) {
  const code = button.parentElement.querySelector("code");
  const say = (what) => {
    button.textContent = what;
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  // A page opened from a file may not be allowed to use the clipboard.
  const select = () => { getSelection().selectAllChildren(code); say("Selected"); };
  button.addEventListener("click", () => {
    if (!navigator.clipboard) return select();
    navigator.clipboard.writeText(code.textContent).then(() => say("Copied"), select);
  });
}
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  for (const video of document.querySelectorAll("video")) video.play().catch(() => {});
}
