// props.value is JSON from Python: {title, note, maps, bars, than, stale, provenance}; maps and bars are plotly figures, bars may be null.
// Where significance is known a map comes in two layers, and the switch makes the one of pixels that may be chance invisible; they still tell their numbers.
const find = selector => element.querySelector(selector);
const sure = find('.switch input'), maps = find('.maps .plot'), bars = find('.profile .plot');
const largest = 320;      // pixels along the side of a map
let told = null, width = 0, configs = null;

// So wide that no map is too large, and as high as the maps then are.
function size() {
  const { grid, margin, xaxis, yaxis } = told.maps.layout, length = axis => Math.abs(axis.range[1] - axis.range[0]);
  const across = (grid.columns - grid.xgap) / (1 - grid.xgap), down = (grid.rows - grid.ygap) / (1 - grid.ygap);
  const side = Math.min(largest, (maps.clientWidth - margin.l - margin.r) / across);
  return { width: Math.floor(side * across) + margin.l + margin.r, height: Math.ceil(side * down * length(yaxis) / length(xaxis)) + margin.t + margin.b };
}

// Dragging is left to the page until enlarging is switched on. Made once: to plotly, other settings are another plot.
function config(Plotly, filename, canZoom) {
  const zoom = { name: 'enlarge', title: 'Enlarge a part: drag a box', icon: Plotly.Icons.zoombox, attr: 'dragmode', val: 'zoom',
    click: plot => Plotly.relayout(plot, { dragmode: plot.layout.dragmode ? false : 'zoom' }) };
  const save = window.mfmSaveButton?.(Plotly, filename, () => told.provenance);
  return { displaylogo: false, displayModeBar: true, scrollZoom: false, showAxisDragHandles: false, modeBarButtons: [[...canZoom ? [zoom, 'resetScale2d'] : [], ...save ? [save] : []]] };
}

// What a screen reader says of a drawing; the buttons on it stay within reach.
function describe(plot, sentence) {
  plot.querySelectorAll('.main-svg').forEach((svg, i) => {
    if (i) return svg.setAttribute('aria-hidden', 'true');
    svg.setAttribute('role', 'img');
    svg.setAttribute('aria-label', sentence);
  });
}

async function draw() {
  width = maps.clientWidth;
  if (!told || !width) return;      // what cannot be seen yet is drawn when it can
  let Plotly;
  try { Plotly = await window.mfmPlotly(plotly); } catch { find('.note').textContent = 'The figures could not be loaded from the server; reload the page to try again.'; return; }
  if (!told || !maps.clientWidth) return;
  configs ??= [config(Plotly, 'effect-maps', true), config(Plotly, 'morphology-profile')];
  const { data, layout } = told.maps, profile = told.bars;
  const shown = data.map(trace => trace.meta?.significant === false ? { ...trace, opacity: sure.checked ? 0 : 1 } : trace);
  const done = [Plotly.react(maps, shown, { ...layout, ...size() }, configs[0])];
  if (profile) done.push(Plotly.react(bars, profile.data, { ...profile.layout, width: bars.clientWidth }, configs[1]));
  await Promise.all(done);
  describe(maps, `Heatmaps of the change in ${[...new Set(data.map(trace => trace.name))].join(', ')}. Red is more light than ${find('.than').textContent}, blue is less.`);
  if (profile) describe(bars, `Effect sizes, the largest first: ${profile.data[0].y.slice(0, 3).map((name, i) => `${name} ${profile.data[0].x[i].toFixed(1)}`).join(', ')} standard deviations.`);
}

// What Python says

function say() {
  const layers = told.maps.data.filter(trace => trace.meta?.significant), share = layers.reduce((sum, trace) => sum + trace.meta.share, 0) / layers.length;
  find('h3').textContent = told.title;
  find('.note').textContent = told.note || '';
  find('.than').textContent = told.than || 'untreated';
  sure.disabled = !layers.length;
  if (sure.disabled) sure.checked = false;
  find('.why').textContent = sure.disabled ? 'It takes at least 6 cells to tell them.' : share ? `${(100 * share).toFixed(share < .1 ? 1 : 0)} % of all` : 'There are none.';
  find('.switch').classList.toggle('off', sure.disabled);
  find('.profile').hidden = !told.bars;
  legend();
}

function legend() { find('.unsure').hidden = !sure.checked; }

function take(news) {
  told = news?.maps ? news : news && told && { ...told, ...news, maps: told.maps };
  find('.hint').hidden = Boolean(told);
  find('.stage').hidden = !told;
  if (!told) return;
  find('.stale').hidden = !told.stale;
  find('.both').classList.toggle('old', Boolean(told.stale));
  if (news.maps) { say(); draw(); }
}

sure.addEventListener('change', () => {
  legend();
  if (!maps.data) return;      // drawn as it then is
  const unsure = [...maps.data.keys()].filter(i => maps.data[i].meta?.significant === false);
  window.Plotly.restyle(maps, { opacity: sure.checked ? 0 : 1 }, unsure);
});

new ResizeObserver(() => {
  const now = maps.clientWidth;
  if (!told || now === width) return;
  width = now;
  if (!now) return;
  if (!maps.data) return void draw();
  window.Plotly.relayout(maps, size());
  if (told.bars) window.Plotly.relayout(bars, { width: bars.clientWidth });
}).observe(find('.maps'));

watch('value', () => take(props.value ? JSON.parse(props.value) : null));
find('.hint').textContent = hint;
setTimeout(() => window.mfmPlotly?.(plotly).catch(() => {}));
if (props.value) take(JSON.parse(props.value));
