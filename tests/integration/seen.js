// Says what a reader of the report sees, as JSON in an attribute of the page around it.
const box = (element) => element.getBoundingClientRect();
const text = (element) => element.innerText.replace(/\s+/g, " ").trim();
const all = (selector, parent = document) => [...parent.querySelectorAll(selector)];

// [red, green, blue, opacity], each 0 to 1, of a computed color; null for one in another notation.
function color(value) {
  const found = value.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/);
  return found && [found[1] / 255, found[2] / 255, found[3] / 255, found[4] === undefined ? 1 : +found[4]];
}

// Relative luminance and contrast as WCAG 2.1 defines them.
function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function background(element) {
  for (let one = element; one; one = one.parentElement) {
    const found = color(getComputedStyle(one).backgroundColor);
    if (!found || found[3] === 1) return found;
  }
  return [1, 1, 1, 1];
}

function contrast(element) {
  const ink = color(getComputedStyle(element).color), paper = background(element);
  if (!ink || !paper) return Infinity;
  const [light, dark] = [luminance(ink), luminance(paper)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
}

addEventListener("load", () => {
  const written = all("body *").filter(
    (one) => box(one).width && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) && one.tagName !== "SCRIPT",
  );
  const named = (one) => `${one.tagName} ${one.className}: ${text(one).slice(0, 60)}`;
  const zero = document.querySelector("#parts .line.zero");
  const seen = {
    width: innerWidth,
    scroll_width: document.documentElement.scrollWidth,
    too_wide: written.filter((one) => !one.closest(".scroll") && box(one).right > innerWidth + 1).map(named),
    smallest_text: Math.min(...written.map((one) => parseFloat(getComputedStyle(one).fontSize))),
    pale: written.filter((one) => contrast(one) < 4.5).map(named),
    background: luminance(background(document.body)),
    answers: all(".answers > div").map((row) => ({
      question: text(row.querySelector("dt")), answer: text(row.querySelector("dd")), bottom: box(row).bottom,
    })),
    areas: all("#parts .area").map((one) => ({ part: one.classList[1].replace("part-", ""), height: box(one).height })),
    zero: box(zero).top,
    zero_label: all("#parts .y").filter((one) => parseFloat(text(one)) === 0).map((one) => box(one).top + box(one).height / 2)[0],
    spikes: all("#spikes article").map((one) => ({
      title: text(one.querySelector("h3")),
      proofs: all(".proofs li", one).map(text),
      replayed: all(".shown > div", one).filter((chart) => text(chart.querySelector("h4")) === "Trained again")
        .flatMap((chart) => all(".line:not(.dots):not(.guess)", chart))
        .map((line) => ({ color: getComputedStyle(line).color, width: box(line).width })),
    })),
  };
  parent.document.documentElement.setAttribute("data-seen", JSON.stringify(seen));
});
