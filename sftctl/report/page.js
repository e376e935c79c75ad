// The value beside the pointer. Without this script the page lacks nothing else.
for (const canvas of document.querySelectorAll("[data-curves]")) {
  const curves = JSON.parse(canvas.dataset.curves);
  const line = canvas.appendChild(document.createElement("i"));
  const box = canvas.appendChild(document.createElement("output"));
  line.className = "pointer";
  const hide = () => { line.hidden = box.hidden = true; };
  const show = (event) => {
    const area = canvas.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width;
    let best = null;
    const words = [];
    for (const [name, points] of curves) {
      let nearest = points[0];
      for (const point of points) {
        if (Math.abs(point[0] - x) < Math.abs(nearest[0] - x)) nearest = point;
      }
      const [where, value] = nearest[2].split("\n");
      words.push(curves.length > 1 ? `${name} ${value} (${where})` : `${where}: ${value}`);
      if (!best || Math.abs(nearest[0] - x) < Math.abs(best - x)) best = nearest[0];
    }
    box.textContent = words.join("\n");
    line.hidden = box.hidden = false;
    line.style.left = `${100 * best}%`;
    box.style.left = `${100 * best}%`;
    box.style.transform = best < 0.5 ? "translateX(0.6rem)" : "translateX(calc(-100% - 0.6rem))";
  };
  canvas.addEventListener("pointermove", show);
  canvas.addEventListener("pointerdown", show);
  canvas.addEventListener("pointerleave", hide);
  hide();
}
