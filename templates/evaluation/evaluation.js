// Shows one sample of one prompt as every model drew it, large and side by side. The images are
// those of the page; nothing is loaded. Without this script the page lacks that view only.
"use strict";
(() => {
  const dialog = document.getElementById("lightbox");
  const row = document.getElementById("lightbox-row");
  const words = document.getElementById("lightbox-text");
  const position = document.getElementById("position");

  // Every prompt and sample that has at least one image, in the order of the page.
  const stops = [];
  for (const block of document.querySelectorAll(".block")) {
    const numbers = new Set(
      Array.from(block.querySelectorAll("button.shot"), (shot) => Number(shot.dataset.number)),
    );
    for (const number of Array.from(numbers).sort((a, b) => a - b)) stops.push({ block, number });
  }
  let at = 0;

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function show(place) {
    at = (place + stops.length) % stops.length;
    const { block, number } = stops[at];
    words.textContent = block.querySelector("h4").firstChild.textContent;
    position.textContent = `sample ${number + 1}`;
    row.replaceChildren();
    for (const cell of block.querySelectorAll(".cell")) {
      const figure = element("figure");
      const shot = cell.querySelector(`.shot[data-number="${number}"]`);
      const image = shot && shot.querySelector("img");
      if (image) {
        figure.append(Object.assign(element("img"), { src: image.src, alt: image.alt }));
      } else {
        figure.append(element("p", "no image", "gone"));
      }
      const caption = element("figcaption");
      caption.append(element("b", cell.querySelector("h5").textContent));
      for (const score of shot ? shot.querySelectorAll(".scores > span") : []) {
        caption.append(element("span", score.textContent));
      }
      figure.append(caption);
      row.append(figure);
    }
  }

  for (const shot of document.querySelectorAll("button.shot")) {
    shot.addEventListener("click", () => {
      const block = shot.closest(".block");
      const number = Number(shot.dataset.number);
      show(stops.findIndex((stop) => stop.block === block && stop.number === number));
      dialog.showModal();
    });
  }
  document.getElementById("previous").addEventListener("click", () => show(at - 1));
  document.getElementById("next").addEventListener("click", () => show(at + 1));
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(at - 1);
    if (event.key === "ArrowRight") show(at + 1);
  });
})();
