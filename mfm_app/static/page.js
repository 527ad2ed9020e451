// What all tabs share.
() => {
  // Which channels are shown and between which grey levels, as `show` in an address: DNA,Actin:0-90.
  const asked = new URLSearchParams(location.search), tabs = ['explore', 'counterfactual', 'screen', 'about'];
  const one = part => part.match(/^([^:]+?)(?::(\d{1,3})-(\d{1,3}))?$/).slice(1);
  const level = ([name, low = 0, high = 255]) => [decodeURIComponent(name), { on: true, low: +low, high: +high }];
  try { if (asked.get('show')) window.mfmAsked = new Map(asked.get('show').split(',').map(one).map(level)); } catch { /* what is wrong with it is said by the server */ }
  window.mfmShow = () => {
    const all = Object.entries(window.mfmChannels ?? {}), levels = ({ low, high }) => low > 0 || high < 255 ? `:${low}-${high}` : '';
    if (all.every(([, c]) => c.on && !levels(c))) return '';
    return all.filter(([, c]) => c.on).map(([name, c]) => encodeURIComponent(name) + levels(c)).join(',') || '-';
  };

  // The address bar says what the open tab shows: of each tab the last view, or just its name, and how it is looked at.
  let open = tabs.includes(asked.get('tab')) ? asked.get('tab') : 'explore';
  const last = {}, cells = { [open]: Number(asked.get('cell')) || 0 };
  window.mfmAddress = (tab, address) => {
    const said = new URLSearchParams(address);
    if (!said.has('perturbation') && !said.has('molecule')) return address;
    const look = { show: window.mfmShow(), cell: cells[tab] ? String(cells[tab]) : '' };
    for (const [name, value] of Object.entries(look)) { if (value) said.set(name, value); else said.delete(name); }
    return `?${said}`;
  };
  window.mfmVisit = (tab, address) => {
    if (address === undefined) open = tab;
    last[tab] = address ?? last[tab] ?? (location.search.includes(`tab=${tab}`) ? location.search : `?tab=${tab}`);
    if (tab !== open) return;      // what ends behind the tab that is open waits until that is visited
    const said = window.mfmAddress(tab, last[tab]);
    try { history.replaceState(history.state, '', said); } catch { /* in a frame that may not */ }
    const above = location.ancestorOrigins?.[0] ?? (document.referrer && new URL(document.referrer).origin);
    if (above === 'https://huggingface.co') window.parent.postMessage({ queryString: said.slice(1), hash: '' }, above);
  };
  window.mfmLook = cell => {      // another cell is large, or the channels are shown otherwise
    if (cell !== undefined) cells[open] = cell;
    if (last[open]) window.mfmVisit(open, last[open]);
  };
  window.addEventListener('mfm-channels', () => window.mfmLook());

  // Plotly comes from this server, when it is first needed.
  let loaded = null;
  window.mfmPlotly = folder => loaded ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = `${window.gradio_config.root}/gradio_api/file=${folder}/plotly.min.js`;
    script.onload = () => resolve(window.Plotly);
    script.onerror = reject;
    document.head.append(script);
  });

  // A button of a plotly figure that saves it as SVG, with the record of how it was made inside.
  window.mfmSaveButton = (Plotly, filename, provenance) => ({
    name: 'save', title: 'Save as SVG, with the record of how it was made', icon: Plotly.Icons.camera,
    click: async plot => {
      const address = await Plotly.toImage(plot, { format: 'svg' });
      const drawn = new DOMParser().parseFromString(decodeURIComponent(address.slice(address.indexOf(',') + 1)), 'image/svg+xml');
      const record = drawn.createElementNS('http://www.w3.org/2000/svg', 'metadata');
      record.textContent = JSON.stringify(provenance() ?? {});
      drawn.documentElement.prepend(record);
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(drawn)], { type: 'image/svg+xml' }));
      link.download = `${filename}.svg`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
  });
}
