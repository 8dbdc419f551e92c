"use strict";
for (const compare of document.querySelectorAll(".compare")) {
  const range = compare.querySelector("input");
  const split = (percent) => {
    range.value = percent;
    compare.style.setProperty("--split", range.value + "%");
  };
  const follow = (event) => {
    const box = compare.getBoundingClientRect();
    split(100 * (event.clientX - box.left) / box.width);
  };
  range.addEventListener("input", () => split(range.value));
  compare.addEventListener("pointerdown", (event) => {
    compare.setPointerCapture(event.pointerId);
    range.focus({ preventScroll: true });
    follow(event);
  });
  // By itself a press moves the focus away again, to where nothing can be focused.
  compare.addEventListener("mousedown", (event) => event.preventDefault());
  compare.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  const views = compare.parentElement.querySelectorAll(".views button");
  for (const view of views) {
    view.addEventListener("click", () => {
      for (const other of views) other.setAttribute("aria-pressed", other === view);
      compare.querySelector(".before").src = view.dataset.before;
      compare.querySelector(".after").src = view.querySelector("img").src;
    });
  }
}

// Clips side by side drift apart in time: all follow the first.
for (const group of document.querySelectorAll(".compare, .together")) {
  const [leading, ...led] = group.querySelectorAll("video");
  for (const clip of led) {
    leading.addEventListener("timeupdate", () => {
      // Where decoding is slow, a new jump before the last one has ended would leave nothing to see.
      if (clip.seeking || clip.readyState < 2) return;
      if (Math.abs(clip.currentTime - leading.currentTime) > 0.15) clip.currentTime = leading.currentTime;
    });
    leading.addEventListener("pause", () => clip.pause());
    leading.addEventListener("play", () => clip.play().catch(() => {}));
  }
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
