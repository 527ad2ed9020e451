// What all tabs share.
() => {
  // The address bar says what the open tab shows: of each tab the last view, or just its name.
  const last = {};
  const named = new URLSearchParams(location.search).get('tab');
  let open = ['counterfactual', 'screen', 'about'].includes(named) ? named : 'explore';
  window.mfmVisit = (tab, address) => {
    if (address === undefined) open = tab;
    last[tab] = address ?? last[tab] ?? (location.search.includes(`tab=${tab}`) ? location.search : `?tab=${tab}`);
    if (tab !== open) return;      // what ends behind the tab that is open waits until that is visited
    try { history.replaceState(history.state, '', last[tab]); } catch { /* in a frame that may not */ }
    const above = location.ancestorOrigins?.[0] ?? (document.referrer && new URL(document.referrer).origin);
    if (above === 'https://huggingface.co') window.parent.postMessage({ queryString: last[tab].slice(1), hash: '' }, above);
  };

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
