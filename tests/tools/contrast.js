// Every visible text whose contrast with the ground behind it is below WCAG AA (4.5, or 3 for large text).
(() => {
  const channels = colour => (colour.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const opaque = colour => { const c = channels(colour); return c.length < 4 || c[3] > 0.99; };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (opaque(colour)) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const luminance = colour => {
    const [r, g, b] = channels(colour).slice(0, 3).map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => { const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x); return (high + 0.05) / (low + 0.05); };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), low = new Set();
  let seen = 0;
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement;
    if (!node.textContent.trim() || ["SCRIPT", "STYLE", "DEFS"].includes(element.tagName.toUpperCase())) continue;
    if (!element.getClientRects().length) continue;
    seen += 1;
    const style = getComputedStyle(element), svg = element.closest("svg");
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const found = ratio(svg ? style.fill : style.color, ground(svg ? svg.parentElement : element));
    if (found < (large ? 3 : 4.5)) low.add(`${found.toFixed(2)} ${node.textContent.trim().slice(0, 40)}`);
  }
  return seen < 100 ? [`only ${seen} texts seen`] : [...low];
})()
